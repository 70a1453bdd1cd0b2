"""The work of one network call: multiply-adds and weights, counted from the exported float32 graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEGABYTE = 1 << 20
BYTES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0}  # of a weight; int8 keeps some layers in bf16, so this is its lower bound


@dataclass(frozen=True)
class Work:
    """One call of a graph at batch 1: floating-point operations (2 per multiply-add) and the number of weights."""

    flop: int
    weights: int


def count(model: bytes, sizes: Mapping[str, int] | None = None) -> Work:
    """Count convolutions and matrix products of an ONNX model. sizes: of its free dimensions by name; others count as 1.

    Everything else (normalisation, activations) is left out: it is what a fast engine hides behind these.
    """
    import onnx

    loaded = onnx.load_from_string(model)
    for tensor in loaded.graph.initializer:
        if len(tensor.raw_data) > MEGABYTE:  # only its shape is looked at, and passing a gigabyte through takes long
            tensor.ClearField("raw_data")
    loaded.graph.ClearField("value_info")
    for value in (*loaded.graph.input, *loaded.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = (sizes or {}).get(dim.dim_param, 1)
    graph = onnx.shape_inference.infer_shapes(loaded, data_prop=True).graph
    shapes = {value.name: _dims(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants = [tensor for tensor in graph.initializer if len(tensor.dims) > 0]
    return Work(sum(_flop(node, shapes) for node in graph.node), sum(math.prod(t.dims) for t in constants))


def _dims(value: Any) -> tuple[int, ...]:
    """A tensor's shape; a dimension that is not known counts as 1."""
    return tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)


def _flop(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    outputs = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return 2 * outputs * math.prod(shapes[node.input[1]][1:])  # [out, in / groups, kh, kw]
    if node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute):
        return 2 * outputs * shapes[node.input[0]][0]
    return 2 * outputs * shapes[node.input[0]][-1]
