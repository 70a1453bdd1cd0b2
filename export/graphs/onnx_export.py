"""ONNX files of graphs that torch defines: dynamic batch, named tensors, nothing of the machine that built them.

Of graphs that run in any size, height and width are free in the file too. For a size that is settled the few nodes that
compute with them fold away: in OpenVINO when it compiles, in ONNX Runtime but for some scalars, and by `fixed` for TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer

from engine.bundle.files import MAX_GRAPH_BYTES
from engine.bundle.onnx_file import PAGE, Onnx
from engine.bundle.tensors import Shape, TensorSpec
from engine.commands import install_extra
from engine.errors import ExportError, first_line
from export.graphs.roles import FreeSize, Role, entry_of, example, weights_file

# 18 keeps GroupNorm as Reshape, InstanceNormalization, Reshape, Mul, Add: ONNX Runtime has a kernel for it and OpenVINO
# one MVN node. From 21 on the exporter emits GroupNormalization, which ONNX Runtime's CPU provider expands into some
# twenty elementwise nodes and OpenVINO into more shape arithmetic.
OPSET = 18
FORMAT = "diffusevae-graph"
INSIDE = MAX_GRAPH_BYTES - 2**26  # of weights in the file itself: what is left is for nodes and names


def export_onnx(role: Role, free: FreeSize | None = None) -> Onnx:
    """Export a graph through torch.export; the same weights give the same bytes. free: of a graph that runs in any size.

    Where the weights are more than an ONNX file may hold, they are left outside: as the module's own memory, not copied.

    ExportError when the exporter fails or the file's signature is not the role's.
    """
    # Any batch but 0 and 1, which torch.export would take for constants.
    traced = role if free is None else free.at(role, 2 * free.multiple, 3 * free.multiple)
    inputs = example(traced, batch=2, steps=3, seed=0)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                role.module.eval(),
                kwargs=inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in role.inputs],
                output_names=[tensor.name for tensor in role.outputs],
                dynamic_shapes=_dynamic_shapes(role, free),
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            f"graph {role.name}: found that torch {torch.__version__} cannot export it "
            f"({first_line(error)}), expected an ONNX graph of opset {OPSET}; install the "
            f"versions of the extra export: {install_extra('export')}"
        ) from error
    assert program is not None, "torch.onnx.export returns a program when dynamo=True"
    weights = _take_out(program.model.graph, weights_file(role))
    model = program.model_proto
    _anonymise(model)
    if free is not None:
        _set_sizes(model, role, free.names)
    label_graph(model, role)
    if weights:  # so that the hash of the graph is one of its weights too
        model.metadata_props.add(key="weights_sha256", value=_hash(Onnx(b"", weights)))
    _check_signature(model, role, free)
    return Onnx(bytes(model.SerializeToString(deterministic=True)), weights)


def fixed(model: bytes, role: Role, free: FreeSize | None) -> bytes:
    """The bytes of a graph with the height and width of its role, and nothing computed from them any more."""
    if free is None:
        return model
    settled = onnx.load_from_string(model)
    _set_sizes(settled, role, lambda spec: spec.shape)
    settled = optimizer.optimize(settled)
    _anonymise(settled)
    _check_signature(settled, role)
    return bytes(settled.SerializeToString(deterministic=True))


def _dynamic_shapes(role: Role, free: FreeSize | None) -> dict[str, dict[int, Any]]:
    """{input: {axis: the dimension that it stands for}}."""
    dims = {name: torch.export.Dim(name) for tensor in role.inputs for name in tensor.shape if isinstance(name, str)}
    shapes = {
        tensor.name: {axis: dims[d] for axis, d in enumerate(tensor.shape) if isinstance(d, str)} for tensor in role.inputs
    }
    if free is not None:
        steps = [torch.export.Dim(name, min=2) for name in ("high", "wide")]  # torch.export takes 1 for a constant
        for tensor in role.inputs:
            factor, rank = free.ports.get(tensor.name, 0) * free.multiple, len(tensor.shape)
            if factor:
                shapes[tensor.name] |= {rank - 2 + axis: factor * step for axis, step in enumerate(steps)}
    return shapes


def _set_sizes(model: onnx.ModelProto, role: Role, shape_of: Callable[[TensorSpec], Shape]) -> None:
    """Write these shapes over those of the graph's inputs and outputs."""
    for infos, tensors in ((model.graph.input, role.inputs), (model.graph.output, role.outputs)):
        for info, tensor in zip(infos, tensors, strict=True):
            for dim, size in zip(info.type.tensor_type.shape.dim, shape_of(tensor), strict=True):
                dim.Clear()
                if isinstance(size, str):
                    dim.dim_param = size
                else:
                    dim.dim_value = size


def _take_out(graph: ir.Graph, file: str) -> dict[str, npt.NDArray[np.generic]]:
    """Leave the large initializers of a graph that is too large to ONNX's own notes of where they are; the arrays."""
    tensors = {name: value.const_value for name, value in graph.initializers.items() if value.const_value is not None}
    if sum(tensor.nbytes for tensor in tensors.values()) <= INSIDE:
        return {}
    taken: dict[str, npt.NDArray[np.generic]] = {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.nbytes < PAGE or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            continue
        array = taken[name] = np.ascontiguousarray(tensor.numpy())
        place = ir.ExternalTensor(file, offset, array.nbytes, tensor.dtype, shape=ir.Shape(array.shape), name=name)
        graph.initializers[name].const_value = place
        offset += array.nbytes + -array.nbytes % PAGE
    return taken


def _hash(model: Onnx) -> str:
    digest = hashlib.sha256()
    for piece in model.pieces():
        digest.update(piece)
    return digest.hexdigest()


class _quiet:
    """Silence the exporter's advice (optional packages that are not installed, axis names shared by two inputs)."""

    def __enter__(self) -> None:
        self._catch = warnings.catch_warnings()
        self._catch.__enter__()
        warnings.simplefilter("ignore")
        self._logger = logging.getLogger("torch.onnx")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        self._logger.setLevel(self._level)
        self._catch.__exit__(None, None, None)


def _anonymise(model: onnx.ModelProto) -> None:
    """Remove stack traces and other notes of the exporter: they hold local paths and change from machine to machine."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        entry.doc_string = ""
        if hasattr(entry, "metadata_props"):
            del entry.metadata_props[:]
    del graph.value_info[:]  # inferred again by whoever loads the graph


def label_graph(model: onnx.ModelProto, role: Role) -> None:
    """Record what the graph is and what its tensors hold, for tools that see the file alone."""
    model.graph.name = role.name
    tensors = {
        "inputs": [entry_of(tensor) for tensor in role.inputs],
        "outputs": [entry_of(tensor) for tensor in role.outputs],
    }
    labels = {"format": FORMAT, "graph": role.name, "precision": role.precision} | {
        key: json.dumps(value) for key, value in tensors.items()
    }
    for key, value in labels.items():
        model.metadata_props.add(key=key, value=value)


def _check_signature(model: onnx.ModelProto, role: Role, free: FreeSize | None = None) -> None:
    """The file's inputs and outputs must be the role's, free dimensions by name."""
    for kind, infos, tensors in (("inputs", model.graph.input, role.inputs), ("outputs", model.graph.output, role.outputs)):
        found = [(info.name, _shape(info)) for info in infos]
        expected = [(tensor.name, tensor.shape if free is None else free.names(tensor)) for tensor in tensors]
        if found != expected:
            raise ExportError(
                f"graph {role.name}: found the {kind} {found}, expected {expected}; install the versions of the "
                f"extra export: {install_extra('export')}"
            )


def _shape(info: Any) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim)
