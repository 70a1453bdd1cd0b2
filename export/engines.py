"""Engine builders: the contract of one, what it is given and hands back, and which module builds for which backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from engine.bundle.graphs import graph_key
from engine.bundle.reader import Bundle
from engine.errors import BackendError, ExportError
from export.context import Graph, Watch
from export.families.base import Model

ENGINE_BUILDERS = {  # backend -> module, which is an `EngineBuilder`
    "native": "export.native.builder",
    "tensorrt_rtx": "export.tensorrt.rtx",
    "tensorrt": "export.tensorrt.builder",
}


@dataclass(frozen=True)
class BuildContext:
    """Everything that is known once the graphs are exported.

    previous: the older bundle at the same place, whose engines may be taken over where nothing that they were built from
    has changed; None when there is none or it cannot be read.
    """

    model: Model
    graphs: tuple[Graph, ...]
    watch: Watch
    previous: Bundle | None = None

    def graph(self, name: str, precision: str = "f32") -> Graph:
        """One exported graph; ExportError when this build has none in that precision."""
        key = graph_key(name, precision)
        for graph in self.graphs:
            if graph.key == key:
                return graph
        keys = ", ".join(graph.key for graph in self.graphs) or "none"
        raise ExportError(
            f"graph {key}: found only {keys}, expected it among the exported graphs; "
            f"build with --precision {precision}"
        )


@dataclass(frozen=True)
class BuiltEngine:
    """One engine: its entry in the manifest without sizes and hashes, and its files by name.

    entry["files"] is {label: {"file": name}}, with the labels of `engine.bundle.engines.ENGINE_FILES`; an entry that names
    the backends which run the graph instead, `runs_on`, has none.
    """

    entry: dict[str, Any]
    files: dict[str, bytes]


class EngineBuilder(Protocol):
    """What the module of a backend offers."""

    PRECISIONS: tuple[str, ...]  # that it can build; the first is what it builds where none is named

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse, before any work is done, what `build` would refuse in the end: options, a missing library or GPU."""

    def unfit(self, model: Model) -> str | None:
        """Why this backend cannot run a model, or None: what its graphs found where they have no operations."""

    def build(self, context: BuildContext, precision: str, options: Mapping[str, Any]) -> Sequence[BuiltEngine]:
        """The engines that a run of this backend in this precision needs; any EngineError ends the build."""


def load_builder(backend: str) -> EngineBuilder:
    """The builder of a backend; BackendError when something that it needs is not installed."""
    try:
        return cast(EngineBuilder, importlib.import_module(ENGINE_BUILDERS[backend]))
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {backend}: found no module {error.name}, expected what building its engines needs; install it, or "
            f"leave {backend} out of --backends"
        ) from error
