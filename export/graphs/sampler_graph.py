"""How does the whole sampler become one ONNX graph? VAE decoder, timestep table, then a Loop over denoiser and update.

The role graphs are taken as they were exported and inlined; each weight is stored once. The step table is an input, so one
file serves any solver, any number of steps and any batch, in any runtime that knows ONNX:

    recon      = 2 decoder(z) - 1
    x          = k_noise x_T + (k_image + k_cond) recon
    for row, t in coefficients, timesteps:
        eps    = sum over lanes of guidance[lane] denoiser(x, lane's condition, t)
        x0     = clip(p_x x + p_eps eps + p_cond recon)
        x      = k_x0 x0 + k_prev x0_prev + k_x x + k_eps eps + k_cond recon + sigma noise
    images     = x as bytes

Guidance is a shape, not a branch: `guidance` [1] is one network call on N samples, `guidance` [1 + w, -w] one on 2N, the
second half without condition. An ONNX If on the value of w would need two copies of the denoiser's nodes, and a runtime
that plans memory ahead (TensorRT) would plan for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.errors import ExportError
from engine.kernels import ROW_FIELDS
from export.graphs.onnx_export import label_graph
from export.graphs.roles import Role, Tensor

START_FIELDS = ("k_noise", "k_image", "k_cond")
_KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


@dataclass
class Sheet:
    """Nodes and constants of one graph under construction; `op` returns the name of the node's result."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def op(self, kind: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Append one node whose result is called `out`."""
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{out}:{kind}", **attributes))
        return out

    def split(self, source: str, names: Sequence[str]) -> list[str]:
        """A vector cut into its elements, [1] each."""
        node = helper.make_node("Split", [source], list(names), name=f"{source}:Split", axis=0, num_outputs=len(names))
        self.nodes.append(node)
        return list(names)

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """A constant under this name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def sum(self, terms: Iterable[tuple[str, str]], out: str) -> str:
        """k_1 a_1 + k_2 a_2 + ..., added from left to right as row.h does."""
        total = ""
        products = [self.op("Mul", k, a, out=f"{out}/{k.rpartition('/')[2]}") for k, a in terms]
        for count, product in enumerate(products[1:], 2):
            total = self.op("Add", total or products[0], product, out=out if count == len(products) else f"{out}/sum{count}")
        return total

    def inline(self, model: onnx.ModelProto, prefix: str, names: Mapping[str, str]) -> None:
        """Append a model's nodes and weights; its inputs and outputs get the names given, all else a prefix."""

        def renamed(name: str) -> str:
            return names.get(name, f"{prefix}/{name}") if name else ""

        for tensor in model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = renamed(tensor.name)
            self.constants.append(copy)
        for node in model.graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = f"{prefix}/{node.name}"
            copied.input[:] = [renamed(name) for name in node.input]
            copied.output[:] = [renamed(name) for name in node.output]
            self.nodes.append(copied)


def compose_sampler(role: Role, graphs: Mapping[str, bytes]) -> bytes:
    """The sampler as one ONNX file, from the bytes of its parts by role name (`vae_decoder` absent: unconditional).

    `role` is its signature (export/graphs/sampler_role.py). The same parts give the same bytes. ExportError when the
    result is not a sound graph.
    """
    parts = {name: onnx.load_from_string(data) for name, data in graphs.items()}
    main, body = Sheet(), Sheet()
    _before_the_loop(main, role, parts)
    _loop_body(body, role, parts)
    image = _shape_of(role, "x")
    loop = helper.make_node(
        "Loop",
        # The middle input, a condition, stays empty: TensorRT takes a loop with a trip count or with a condition.
        ["steps", "", "x_start", "x_start"],  # x0_prev of the first step is not read: its k_prev is 0
        ["x", "x0_last"],
        name="steps:Loop",
        body=_body_graph(body, image),
    )
    main.nodes.append(loop)
    _after_the_loop(main)
    graph = helper.make_graph(
        main.nodes, role.name, [_info(t) for t in role.inputs], [_info(t) for t in role.outputs], main.constants
    )
    first = parts["denoiser"]
    model = helper.make_model(graph, opset_imports=list(first.opset_import), ir_version=first.ir_version)
    model.producer_name = "diffusevae-engine"
    label_graph(model, role)
    _check(model, role)
    return bytes(model.SerializeToString(deterministic=True))


def _before_the_loop(main: Sheet, role: Role, parts: Mapping[str, onnx.ModelProto]) -> None:
    """The condition, the start, one embedding row a step, and which noise each step reads."""
    conditional = "vae_decoder" in parts
    main.constant("first", 0)
    main.constant("one", 1)
    main.op("Squeeze", main.op("Shape", "timesteps", out="steps/shape"), out="steps")
    timestep_inputs = {"timesteps": "timesteps", "rows": "rows"}
    if conditional:
        main.constant("image_shape", [-1, *_shape_of(role, "x")[1:]])
        _condition(main, parts["vae_decoder"])
        if any(info.name == "z" for info in parts["timestep_table"].graph.input):
            timestep_inputs["z"] = _z_lanes(main, _shape_of(role, "z"))
    main.inline(parts["timestep_table"], "timestep_table", timestep_inputs)
    k_noise, *k_recon = main.split("start", [f"start/{name}" for name in START_FIELDS])
    terms = [(k_noise, "x_T"), *((k, "recon") for k in k_recon if conditional)]
    if conditional:
        main.sum(terms, out="x_start")
    else:
        main.op("Mul", k_noise, "x_T", out="x_start")
    # noise holds a slice a step, or one for all: 0, 1, ... or 0, 0, ...; any other number cannot be broadcast and fails.
    sizes = main.op("Shape", "noise", out="noise/size", start=0, end=1)
    count = main.op("Squeeze", sizes, out="noise/count")
    numbers = main.op("Range", "first", count, "one", out="noise/numbers")
    none = main.op("Mul", "timesteps", "first", out="noise/zeros")
    main.op("Add", numbers, none, out="noise/index")


def _condition(main: Sheet, decoder: onnx.ModelProto) -> None:
    """recon, the condition of every lane, and guidance as a factor for the lanes' eps."""
    main.inline(decoder, "vae_decoder", {"z": "z", "image": "recon/unit"})
    doubled = main.op("Mul", "recon/unit", main.constant("two", 2, np.float32), out="recon/doubled")
    main.op("Sub", doubled, main.constant("one_float", 1, np.float32), out="recon")
    main.op("Shape", "guidance", out="lanes")
    # The second lane's condition, and its z, are zeros, as in training.
    both = main.constant("lane_mask/both", np.array([1, 0]).reshape(2, 1, 1, 1, 1), np.float32)
    axis = main.constant("axis_0", [0])
    mask = main.op("Slice", both, axis, "lanes", axis, out="lane_mask")
    stack = main.op("Mul", main.op("Unsqueeze", "recon", axis, out="recon/stack"), mask, out="cond/stack")
    main.op("Reshape", stack, "image_shape", out="cond")
    main.op("Reshape", "guidance", main.constant("lane_column", [-1, 1, 1, 1, 1]), out="guidance/column")
    main.op("Concat", "lanes", main.constant("four_ones", [1, 1, 1, 1]), out="lanes/column", axis=0)
    main.op("Concat", "lanes", "image_shape", out="lanes/shape", axis=0)


def _z_lanes(main: Sheet, shape: Sequence[int | str]) -> str:
    """z of every lane, for a network that is conditioned on it."""
    mask = main.op("Reshape", "lane_mask", main.constant("lane_column_z", [-1, 1, 1]), out="z/mask")
    stack = main.op("Mul", main.op("Unsqueeze", "z", "axis_0", out="z/stack"), mask, out="z/lanes_stack")
    return main.op("Reshape", stack, main.constant("z_shape", [-1, *shape[1:]]), out="z/lanes")


def _loop_body(body: Sheet, role: Role, parts: Mapping[str, onnx.ModelProto]) -> None:
    """One step: the denoiser on every lane, then the update of kernels/include/diffusevae/row.h."""
    conditional = "vae_decoder" in parts
    row = body.op("Gather", "coefficients", "step", out="row")
    k = dict(zip(ROW_FIELDS, body.split(row, [f"row/{name}" for name in ROW_FIELDS]), strict=True))
    names = {"x": "state", "row": _embedding(body, parts["timestep_table"]), "eps": "eps"}
    if conditional:
        stack = body.op("Unsqueeze", "state", "axis_0", out="state/stack")
        repeated = body.op("Expand", stack, "lanes/column", out="state/repeated")
        names |= {"x": body.op("Reshape", repeated, "image_shape", out="state/lanes"), "cond": "cond", "eps": "eps/lanes"}
    body.inline(parts["denoiser"], "denoiser", names)
    if conditional:
        stack = body.op("Reshape", "eps/lanes", "lanes/shape", out="eps/stack")
        weighted = body.op("Mul", stack, "guidance/column", out="eps/weighted")
        body.op("ReduceSum", weighted, "axis_0", out="eps", keepdims=0)
    recon = [(k["p_cond"], "recon")] if conditional else []
    predicted = body.sum([(k["p_x"], "state"), (k["p_eps"], "eps"), *recon], out="x0/unlimited")
    at_least = body.op("Max", predicted, body.op("Neg", k["clip"], out="row/clip_low"), out="x0/limited_below")
    body.op("Min", at_least, k["clip"], out="x0")
    noise = body.op("Gather", "noise", body.op("Gather", "noise/index", "step", out="noise/number"), out="noise/step")
    terms = [(k["k_x0"], "x0"), (k["k_prev"], "x0_prev"), (k["k_x"], "state"), (k["k_eps"], "eps")]
    terms += [(k["k_cond"], "recon")] if conditional else []
    body.sum([*terms, (k["sigma"], noise)], out="state_next")
    # From a Constant node and not from the condition that came in: TensorRT refuses a condition that it cannot foresee.
    body.op("Constant", out="go_on", value=numpy_helper.from_array(np.asarray(True)))


def _embedding(body: Sheet, table: onnx.ModelProto) -> str:
    """The step's embedding: [1, R], or [lanes * batch, R] for a network conditioned on z."""
    rank = len(table.graph.output[0].type.tensor_type.shape.dim)
    if rank == 3:
        return body.op("Gather", "rows", "step", out="embedding")
    number = body.op("Unsqueeze", "step", body.constant("step_axis", [0]), out="step/1d")
    return body.op("Gather", "rows", number, out="embedding")


def _body_graph(body: Sheet, image: Sequence[int | str]) -> onnx.GraphProto:
    state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, image) for name in ("state", "x0_prev")]
    following = [helper.make_tensor_value_info(name, TensorProto.FLOAT, image) for name in ("state_next", "x0")]
    step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    conditions = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("went_on", "go_on")]
    return helper.make_graph(
        body.nodes, "step", [step, conditions[0], *state], [conditions[1], *following], body.constants
    )


def _after_the_loop(main: Sheet) -> None:
    """x in [-1, 1] to bytes, rounding half up, NaN to 0, as kernels.to_uint8."""
    low = main.constant("minus_one_float", -1, np.float32)
    high = main.constant("plus_one_float", 1, np.float32)
    above = main.op("Where", main.op("Greater", "x", low, out="x/above"), "x", low, out="x/limited_below")
    limited = main.op("Min", above, high, out="x/limited")
    from_zero = main.op("Add", limited, high, out="x/from_zero")
    scaled = main.op("Mul", from_zero, main.constant("scale", 127.5, np.float32), out="x/scaled")
    shifted = main.op("Add", scaled, main.constant("half", 0.5, np.float32), out="x/shifted")
    channels_last = main.op("Transpose", main.op("Floor", shifted, out="x/levels"), out="x/channels_last", perm=[0, 2, 3, 1])
    # The cast comes last: TensorRT has bytes at the edge of a network only.
    main.op("Cast", channels_last, out="images", to=TensorProto.UINT8)


def _shape_of(role: Role, name: str) -> tuple[int | str, ...]:
    return next(tensor.shape for tensor in (*role.inputs, *role.outputs) if tensor.name == name)


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, _KINDS[tensor.dtype], list(tensor.shape))


def _check(model: onnx.ModelProto, role: Role) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"graph {role.name}: found that its parts do not fit together ({str(error).strip().splitlines()[0][:200]}), "
            "expected a sound ONNX graph; report this message with the version of onnx"
        ) from error
