"""The check for nodes that would not run in TensorRT. Asked of the library's own parser; nothing is built or written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from export.build import Request, prepare
from export.context import Graph, Watch
from export.graphs.onnx_export import fixed
from export.tensorrt.engines import PRECISIONS, chosen_graphs
from export.tensorrt.library import Library, open_library
from export.tensorrt.log import BuildNotes, make_logger
from export.tensorrt.plan import open_builder, typed_network


@dataclass(frozen=True)
class Finding:
    """One node that TensorRT does not take: its graph's key, number and name in it, operator, and the parser's reason."""

    graph: str
    node: int
    name: str
    operator: str
    reason: str

    def __str__(self) -> str:
        where = f"node {self.node}, {self.operator} {self.name!r}" if self.node >= 0 else "the graph"
        return f"{self.graph}: {where}: {self.reason}"


@dataclass(frozen=True)
class Checked:
    """The library that was asked, the graphs that it was asked about, and every node that it does not take."""

    library: Library
    graphs: tuple[str, ...]
    findings: tuple[Finding, ...]


def check_request(request: Request, watch: Watch) -> Checked:
    """Export the graphs that plans would be built from, and ask the first TensorRT among the backends (else RTX)."""
    backend = next((name for name in request.backends if name.startswith("tensorrt")), "tensorrt_rtx")
    library = open_library(backend)
    wanted = replace(request, backends=(backend,), precisions=PRECISIONS)
    context = prepare(wanted, watch).context
    graphs = [  # as they are when a plan is built
        replace(graph, model=fixed(graph.model, graph.role, context.model.free(graph.role.name)))
        for graph in chosen_graphs(context, PRECISIONS[0])
    ]
    with watch.stage(f"ask {backend}"):
        findings = check_graphs(library, graphs)
    return Checked(library, tuple(graph.key for graph in graphs), tuple(findings))


def check_graphs(library: Library, graphs: Iterable[Graph]) -> list[Finding]:
    """Every node of these graphs that the library's parser does not support; empty when all would parse."""
    return [finding for graph in graphs for finding in check_model(library, graph.key, graph.model)]


def check_model(library: Library, key: str, model: bytes) -> list[Finding]:
    """The same for the bytes of one ONNX file."""
    trt, notes = library.module, BuildNotes()
    logger = make_logger(trt, notes.hear)
    builder = open_builder(library, logger, notes)
    network = typed_network(library, builder)  # kept in a name: the parser does not hold it, and would use it freed
    parser = trt.OnnxParser(network, logger)
    if parser.supports_model_v2(model):
        return []
    findings = [_finding(key, parser.get_error(index)) for index in range(parser.num_errors)]
    return findings or [Finding(key, -1, "", "", f"refused ({notes.reasons()})")]


def _finding(key: str, error: Any) -> Finding:
    code = error.code().name.lower().replace("_", " ")
    # For a missing operator the description is the C++ condition that failed, which helps no reader.
    said = "" if error.desc() in ("", "false") else f": {error.desc()}"
    return Finding(key, error.node(), error.node_name(), error.node_operator(), f"{code}{said}")
