"""The whole sampler as one ONNX graph: a pipeline's calls around a Loop over the rows of a step table.

The pipeline's graphs are taken as they were exported and inlined; each weight is stored once. The step table is an input, so
one file serves any solver, any number of steps and any batch, in any runtime that knows ONNX:

    before-calls;  rows;  x = k_noise x_T + k_start start + k_centre centre
    for row, weight in coefficients, weights:
        e   = sum over lanes of weight[lane] step(c_in x, the lane's bindings, the row's embedding), or the regulariser's
        x0  = limit(p . (x, e, c, y, h1, h2, h3))
        n   = exp(s_n v) noise, where the network has the second output v
        g   = a guide's gradient, where the pipeline has guides and the row's k_g is not 0
        x   = k . (x0, x, e, c, n, y, h1, h2, h3, g)
        y   = q . (the same), where the row has any q;   h3, h2, h1 = h2, h1, e or x0, where it pushes
    after-calls;  images = bytes

Lanes are a shape, not a branch: `weights` [rows, 1] is one network call on N samples, [rows, 2] one on 2N, the second
half bound to the nulls. An ONNX If on the weights would need two copies of the network's nodes, and a runtime that
plans memory ahead (TensorRT) would plan for both. A guide is an If (sampler_guides.py), and so is a second network
(sampler_regulariser.py). The history is always carried: for a table that does not use it, that costs a few passes over
the state, which is small beside what the network reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.bundle.pipeline import ROWS, TIMESTEPS, VARIANCE, E, PipelineSpec, X
from engine.bundle.tensors import BATCH, TensorSpec
from engine.errors import ExportError, first_line
from engine.kernels import ROW_FIELDS
from export.graphs.onnx_export import label_graph
from export.graphs.roles import Role
from export.graphs.sampler_guides import guide_gradient, guide_tables
from export.graphs.sampler_lanes import Lanes
from export.graphs.sampler_regulariser import either_network, regulariser_table
from export.graphs.sheet import Sheet

# Names that are no value of the pipeline have a slash in them, which no value's name has.
START = ("start/noise", "start/image", "start/centre")
KEPT = ("y", "h1", "h2", "h3")
_KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


def compose_sampler(role: Role, pipeline: PipelineSpec, graphs: Mapping[str, bytes]) -> bytes:
    """The sampler as one ONNX file, from the bytes of the pipeline's graphs by name.

    `role` is its signature (export/graphs/sampler_role.py). The same parts give the same bytes. ExportError when the
    result is not a sound graph.
    """
    calls = (*pipeline.run_calls, *pipeline.guide_calls, *pipeline.regulariser_calls)
    parts = {call.graph: onnx.load_from_string(graphs[call.graph]) for call in calls}
    main, body = Sheet(), Sheet("loop/")
    constants = _before_the_loop(main, pipeline, parts)
    state = (BATCH, *pipeline.state.shape)
    _loop_body(body, pipeline, parts, constants)
    loop = helper.make_node(
        "Loop",
        # The middle input, a condition, stays empty: TensorRT takes a loop with a trip count or with a condition.
        ["rows/count", "", "x/start", "kept/start"],
        [X, "kept/last"],
        name="rows:Loop",
        body=_body_graph(body, state),
    )
    main.nodes.append(loop)
    for number, call in enumerate(pipeline.after):
        main.inline(parts[call.graph], call.graph, f"after{number}", {**call.inputs, **call.outputs})
    _bytes(main, pipeline.image)
    graph = helper.make_graph(
        main.nodes, role.name, [_info(t) for t in role.inputs], [_info(t) for t in role.outputs], main.constants
    )
    first = parts[pipeline.step.graph]
    model = helper.make_model(graph, opset_imports=list(first.opset_import), ir_version=first.ir_version)
    model.producer_name = "diffusevae-engine"
    label_graph(model, role)
    _check(model, role)
    return bytes(model.SerializeToString(deterministic=True))


def _before_the_loop(main: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto]) -> dict[str, str]:
    """Values, embeddings, start and noise; {port of the step's graph: the name of what stays the same in all rows}."""
    main.op("Squeeze", main.op("Shape", TIMESTEPS, out="rows/shape"), out="rows/count")
    for number, call in enumerate(pipeline.before):
        main.inline(parts[call.graph], call.graph, f"before{number}", {**call.inputs, **call.outputs})
    lanes = Lanes(main, pipeline, parts)
    call = pipeline.rows
    taken = {port: TIMESTEPS if name == TIMESTEPS else lanes.stacked(name) for port, name in call.inputs.items()}
    made = dict.fromkeys(call.outputs, "rows/table")
    main.inline(parts[call.graph], call.graph, "rows", {**taken, **made})
    constants = {port: lanes.stacked(name) for port, name in pipeline.constants.items()}
    _start(main, pipeline)
    _kept(main)
    _noise(main)
    guide_tables(main, pipeline, parts)
    regulariser_table(main, pipeline, parts)
    return constants


def _start(main: Sheet, pipeline: PipelineSpec) -> None:
    """x/start = k_noise x_T + k_start start + k_centre centre."""
    factors = main.split("start", START)
    values = ("x_T", pipeline.state.start, pipeline.state.centre)
    main.sum([(k, name) for k, name in zip(factors, values, strict=True) if name is not None], out="x/start")


def _kept(main: Sheet) -> None:
    """What rows without history start from, zeros, and the coefficients of p, k and q on y and h, [rows, 3, 4, ...].

    A row without any q keeps y: its q_y is 1.
    """
    zero = main.op("Mul", "x/start", main.constant("number/0", 0, np.float32), out="kept/zero")
    main.op("Concat", *[main.op("Unsqueeze", zero, main.axes(0), out="kept/zeros")] * len(KEPT), out="kept/start", axis=0)
    index = [[ROW_FIELDS.index(f"{kind}_{name}") for name in KEPT] for kind in "pkq"]
    taken = main.op("Gather", "coefficients", main.constant("kept/columns", index), out="kept/rows", axis=1)
    first, last = ROW_FIELDS.index("q_x0"), ROW_FIELDS.index("q_g") + 1
    of_q = main.op("Slice", "coefficients", main.axes(first), main.axes(last), main.axes(1), out="kept/q")
    largest = main.op("ReduceMax", main.op("Abs", of_q, out="kept/q_abs"), main.axes(1), out="kept/q_max", keepdims=1)
    none = main.op("Equal", largest, main.constant("number/0", 0, np.float32), out="kept/stays")
    stays = main.op("Cast", none, out="kept/stays_float", to=TensorProto.FLOAT)
    column = main.op("Reshape", stays, main.axes(-1, 1, 1), out="kept/stays_column")
    place = main.constant("kept/q_y", [[[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]], np.float32)
    added = main.op("Add", taken, main.op("Mul", column, place, out="kept/own"), out="kept/all")
    main.op("Reshape", added, main.axes(-1, 3, len(KEPT), 1, 1, 1, 1), out="kept/coefficients")


def _noise(main: Sheet) -> None:
    """noise holds a slice a row, or one for all: 0, 1, ... or 0, 0, ...; any other number cannot be broadcast and fails."""
    sizes = main.op("Shape", "noise", out="noise/size", start=0, end=1)
    count = main.op("Squeeze", sizes, out="noise/count")
    zero, one = main.constant("number/first", 0), main.constant("number/one", 1)
    numbers = main.op("Range", zero, count, one, out="noise/numbers")
    none = main.op("Mul", TIMESTEPS, zero, out="noise/zeros")
    main.op("Add", numbers, none, out="noise/index")


def _loop_body(
    body: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto], constants: Mapping[str, str]
) -> None:
    """One row: the network on every lane, then the update of kernels/include/diffusevae/row.h."""
    row = body.op("Gather", "coefficients", "loop/row", out="row/all")
    k = dict(zip(ROW_FIELDS, body.split(row, [f"row/{name}" for name in ROW_FIELDS]), strict=True))
    network = partial(_network, pipeline=pipeline, parts=parts, constants=constants)
    x = body.op("Mul", k["c_in"], "loop/x", out="network/x")
    e, v = network(body, x) if pipeline.regulariser is None else either_network(body, pipeline, parts, x, network)
    centre = [("c", pipeline.state.centre)] if pipeline.state.centre is not None else []
    on_kept = _on_kept(body)
    slots = [("x", "loop/x"), ("e", e), *centre]
    predicted = body.sum([(k[f"p_{slot}"], name) for slot, name in slots], "x0/unlimited", on_kept["p"])
    at_least = body.op("Max", predicted, body.op("Neg", k["clip"], out="row/clip_low"), out="x0/limited_below")
    x0 = body.op("Min", at_least, k["clip"], out="x0/limited")
    noise = body.op("Gather", "noise", body.op("Gather", "noise/index", "loop/row", out="noise/number"), out="noise/row")
    spread = None if v is None else _spread(body, k["s_n"], v)
    if spread is not None:
        noise = body.op("Mul", spread, noise, out="noise/scaled")
    slots = [("x0", x0), *slots]
    if pipeline.guides:
        mean = body.sum([(k[f"k_{slot}"], name) for slot, name in slots], "guides/mean", on_kept["k"])
        g = guide_gradient(body, pipeline, parts, k["k_g"], mean, spread)
        body.sum([(k["k_n"], noise), (k["k_g"], g)], "loop/x_next", mean)
        slots += [("n", noise), ("g", g)]
    else:
        slots.append(("n", noise))
        body.sum([(k[f"k_{slot}"], name) for slot, name in slots], "loop/x_next", on_kept["k"])
    y = body.sum([(k[f"q_{slot}"], name) for slot, name in slots], "y/next", on_kept["q"])
    _push(body, k["push"], e, x0, y)
    # From a Constant node and not from the condition that came in: TensorRT refuses a condition that it cannot foresee.
    body.op("Constant", out="loop/go_on", value=numpy_helper.from_array(np.asarray(True)))


def _network(
    body: Sheet, x: str, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto], constants: Mapping[str, str]
) -> tuple[str, str | None]:
    """e: the network's answer in every lane, times the lane's weight, added up; and lane 0's v, of networks that have it."""
    step, state = pipeline.step, pipeline.state
    weight = body.op("Gather", "weights", "loop/row", out="network/weights")
    answers = {E: "network/e", VARIANCE: "network/v"}
    answer = answers[E]
    if pipeline.guided:
        stack = body.op("Unsqueeze", x, body.axes(0), out="network/x_stack")
        repeated = body.op("Expand", stack, "lanes/1x4", out="network/x_lanes")
        x = body.op("Reshape", repeated, body.axes(-1, *state.shape), out="network/x_all")
    names = {port: {X: x, ROWS: "network/embedding"}.get(name) or constants[port] for port, name in step.inputs.items()}
    if ROWS in step.inputs.values():
        _embedding(body, pipeline.per_sample_rows)
    names |= {port: answers[name] for port, name in step.outputs.items()}
    body.inline(parts[step.graph], step.graph, "step", names)
    v = answers[VARIANCE] if pipeline.learns_variance else None
    if not pipeline.guided:
        return body.op("Mul", answer, weight, out="e/weighted"), v
    shape = body.op("Concat", "lanes/count", body.axes(-1, *state.shape), out="network/e_shape", axis=0)
    stack = body.op("Reshape", answer, shape, out="network/e_stack")
    column = body.op("Reshape", weight, body.axes(-1, 1, 1, 1, 1), out="network/weight_column")
    weighted = body.op("Mul", stack, column, out="network/e_weighted")
    if v is not None:
        stack = body.op("Reshape", v, shape, out="network/v_stack")
        v = body.op("Gather", stack, body.constant("number/lane", 0), out="network/v_first", axis=0)
    return body.op("ReduceSum", weighted, body.axes(0), out="e/weighted", keepdims=0), v


def _spread(body: Sheet, s_n: str, v: str) -> str:
    """exp(s_n v); 1 where s_n is 0."""
    return body.op("Exp", body.op("Mul", s_n, v, out="noise/exponent"), out="noise/factor")


def _embedding(body: Sheet, per_sample: bool) -> None:
    """The row's embedding: [1, R], or [lanes * batch, R] where it depends on the sample."""
    number = "loop/row" if per_sample else body.op("Unsqueeze", "loop/row", body.axes(0), out="network/number")
    body.op("Gather", "rows/table", number, out="network/embedding")


def _on_kept(body: Sheet) -> dict[str, str]:
    """The sums of p, k and q over y and h, all three in one pass."""
    row = body.op("Gather", "kept/coefficients", "loop/row", out="kept/row")
    stack = body.op("Unsqueeze", "loop/kept", body.axes(0), out="kept/stack")
    products = body.op("Mul", row, stack, out="kept/products")
    sums = body.op("ReduceSum", products, body.axes(1), out="kept/sums", keepdims=0)
    parts = body.split(sums, [f"kept/{kind}_part" for kind in "pkq"])
    return {
        kind: body.op("Squeeze", part, body.axes(0), out=f"kept/sum_{kind}") for kind, part in zip("pkq", parts, strict=True)
    }


def _push(body: Sheet, push: str, e: str, x0: str, y: str) -> None:
    """loop/kept_next: y, and the history moved on by e (push 1) or x0 (push 2), or as it was (push 0)."""
    two, zero = body.constant("number/2", 2, np.float32), body.constant("number/0", 0, np.float32)
    value = body.op("Where", body.op("Equal", push, two, out="push/is_x0"), x0, e, out="push/value")
    newest = body.op("Unsqueeze", value, body.axes(0), out="push/newest")
    older = body.op("Slice", "loop/kept", body.axes(1), body.axes(3), body.axes(0), out="push/older")
    moved = body.op("Concat", newest, older, out="push/moved", axis=0)
    before = body.op("Slice", "loop/kept", body.axes(1), body.axes(4), body.axes(0), out="push/before")
    pushes = body.op("Greater", push, zero, out="push/any")
    history = body.op("Where", pushes, moved, before, out="push/history")
    body.op("Concat", body.op("Unsqueeze", y, body.axes(0), out="y/stack"), history, out="loop/kept_next", axis=0)


def _body_graph(body: Sheet, state: Sequence[int | str]) -> onnx.GraphProto:
    def pair(x: str, kept: str) -> list[onnx.ValueInfoProto]:
        shapes = {x: list(state), kept: [len(KEPT), *state]}
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    row = helper.make_tensor_value_info("loop/row", TensorProto.INT64, [])
    went_on, go_on = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("loop/went_on", "loop/go_on"))
    inputs = [row, went_on, *pair("loop/x", "loop/kept")]
    return helper.make_graph(body.nodes, "row", inputs, [go_on, *pair("loop/x_next", "loop/kept_next")], body.constants)


def _bytes(main: Sheet, image: str) -> None:
    """An image in [-1, 1] to bytes, rounding half up, NaN to 0, as kernels.to_uint8."""
    low, high = main.constant("number/-1", -1, np.float32), main.constant("number/+1", 1, np.float32)
    above = main.op("Where", main.op("Greater", image, low, out="image/above"), image, low, out="image/limited_below")
    limited = main.op("Min", above, high, out="image/limited")
    from_zero = main.op("Add", limited, high, out="image/from_zero")
    scaled = main.op("Mul", from_zero, main.constant("number/127.5", 127.5, np.float32), out="image/scaled")
    shifted = main.op("Add", scaled, main.constant("number/half", 0.5, np.float32), out="image/shifted")
    levels = main.op("Floor", shifted, out="image/levels")
    channels_last = main.op("Transpose", levels, out="image/channels_last", perm=[0, 2, 3, 1])
    # The cast comes last: TensorRT has bytes at the edge of a network only.
    main.op("Cast", channels_last, out="images", to=TensorProto.UINT8)


def _info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _KINDS[spec.dtype], list(spec.shape))


def _check(model: onnx.ModelProto, role: Role) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"graph {role.name}: found that its parts do not fit together ({first_line(error)}), "
            "expected a sound ONNX graph; report this message with the version of onnx"
        ) from error
