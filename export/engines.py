"""Engine builders: what each is given, what it hands back, and which module builds for which backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, cast

from engine.bundle.manifest import graph_key
from engine.bundle.reader import Bundle
from engine.errors import BackendError, ExportError
from export.context import Graph, Source, Watch
from export.families.architecture import Architecture
from export.models.unet import UNet
from export.models.vae import VAE

ENGINE_BUILDERS = {  # backend -> module, which has PRECISIONS and build(context, precision, options)
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


def load_builder(backend: str) -> EngineBuilder:
    """The builder of a backend; BackendError when something that it needs is not installed."""
    name = ENGINE_BUILDERS[backend]
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {backend}: found no module {error.name}, expected what building its engines needs; install it, or "
            f"leave {backend} out of --backends"
        ) from error
    return cast(EngineBuilder, module)
