"""ONNX files of graphs that torch defines: dynamic batch, named tensors, nothing of the machine that built them."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import onnx
import torch

from engine.commands import install_extra
from engine.errors import ExportError, first_line
from export.graphs.roles import Role, entry_of, example

# 18 keeps GroupNorm as Reshape, InstanceNormalization, Reshape, Mul, Add: ONNX Runtime has a kernel for it and OpenVINO
# one MVN node. From 21 on the exporter emits GroupNormalization, which ONNX Runtime's CPU provider expands into some
# twenty elementwise nodes and OpenVINO into more shape arithmetic.
OPSET = 18
FORMAT = "diffusevae-graph"


def export_onnx(role: Role) -> bytes:
    """Export a graph through torch.export; the same weights give the same bytes.

    ExportError when the exporter fails or the file's signature is not the role's.
    """
    # Any batch but 0 and 1, which torch.export would take for constants.
    inputs = example(role, batch=2, steps=3, seed=0)
    dims = {name: torch.export.Dim(name) for tensor in role.inputs for name in tensor.shape if isinstance(name, str)}
    shapes = {
        tensor.name: {axis: dims[d] for axis, d in enumerate(tensor.shape) if isinstance(d, str)} for tensor in role.inputs
    }
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                role.module.eval(),
                kwargs=inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in role.inputs],
                output_names=[tensor.name for tensor in role.outputs],
                dynamic_shapes=shapes,
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
    model = program.model_proto
    _anonymise(model)
    label_graph(model, role)
    _check_signature(model, role)
    return bytes(model.SerializeToString(deterministic=True))


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


def _check_signature(model: onnx.ModelProto, role: Role) -> None:
    """The file's inputs and outputs must be the role's, free dimensions by name."""
    for kind, infos, tensors in (("inputs", model.graph.input, role.inputs), ("outputs", model.graph.output, role.outputs)):
        found = [(info.name, _shape(info)) for info in infos]
        expected = [(tensor.name, tensor.shape) for tensor in tensors]
        if found != expected:
            raise ExportError(
                f"graph {role.name}: found the {kind} {found}, expected {expected}; install the versions of the "
                f"extra export: {install_extra('export')}"
            )


def _shape(info: Any) -> tuple[int | str, ...]:
    return tuple(d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim)
