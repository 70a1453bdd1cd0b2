"""What does an engine builder get, and what does it hand back?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.bundle import Bundle
from engine.errors import ExportError
from engine.manifest import graph_key
from export.architecture import Architecture
from export.context import Graph, Source, Watch
from export.models.unet import UNet
from export.models.vae import VAE


@dataclass(frozen=True)
class BuildContext:
    """Everything that is known once the graphs are exported.

    previous: the older bundle at the same place, whose engines may be taken over where nothing that they were built from
    has changed; None when there is none or it cannot be read.
    """

    architecture: Architecture
    source: Source
    unet: UNet
    vae: VAE | None
    graphs: tuple[Graph, ...]
    watch: Watch
    previous: Bundle | None = None

    def graph(self, role: str, precision: str = "f32") -> Graph:
        """One exported graph; ExportError when this build has none in that precision."""
        key = graph_key(role, precision)
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

    entry["files"] is {label: {"file": name}}, with the labels of `engine.manifest.ENGINE_FILES`.
    """

    entry: dict[str, Any]
    files: dict[str, bytes]


class EngineBuilder(Protocol):
    """What a module export/engines/<backend>.py offers.

    It may also have `check(options)`, called before any work is done, to refuse what its `build` would refuse in the end.
    """

    PRECISIONS: tuple[str, ...]  # that it can build; the first is what it builds when nobody names one

    def build(self, context: BuildContext, precision: str, options: Mapping[str, Any]) -> Sequence[BuiltEngine]:
        """The engines of every role that this backend needs in this precision; any EngineError ends the build."""
        ...
