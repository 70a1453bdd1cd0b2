"""Backend `native`: this project's own engine on the CPU, in bf16 or int8.

The instruction set is the best that processor and operating system allow (AMX, AVX512_BF16, AVX-512 VNNI, AVX2);
DIFFUSEVAE_ISA forces one of them. Results depend on the instruction set, never on batch size or threads.

A graph that the engine has no operations for is run by another runtime, in float32, where the manifest says so (`runs_on`
of an engine): such a graph's results have that runtime's properties.
"""

from __future__ import annotations

from engine.backends.base import Backend
from engine.backends.graph import Graph
from engine.backends.native.chain import NativeChain
from engine.backends.native.graph import NAME, PRECISIONS, NativeGraph, open_graph
from engine.backends.native.isa import is_fast, runs_here
from engine.backends.native.weights import mapped_weights
from engine.backends.onnxruntime import OnnxRuntime
from engine.backends.openvino import OpenVino
from engine.bundle.reader import Bundle
from engine.processor import Processor

RUNNERS: dict[str, type[Backend]] = {kind.NAME: kind for kind in (OnnxRuntime, OpenVino)}


class Native(Backend):
    """Our own CPU engine: programs of fused operations, and the whole loop in one call."""

    NAME = NAME
    PRECISIONS = PRECISIONS
    FORKS = True

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """(whether the engine runs here, its instruction set or why it does not)."""
        return runs_here()

    @classmethod
    def default_precision(cls, bundle: Bundle, processor: Processor) -> str:
        """The first of PRECISIONS that the bundle's step was built in."""
        step = bundle.manifest.pipeline.step.graph
        return next((p for p in PRECISIONS if bundle.has_engine(NAME, p, step)), PRECISIONS[0])

    @classmethod
    def auto_precision(cls, bundle: Bundle, precision: str, processor: Processor) -> str | None:
        """bf16 where it is the fastest there is; int8, which no other backend has, only for who asks for that loss."""
        wanted = "bf16" if precision == "auto" else precision
        best = wanted == "int8" or (wanted == "bf16" and is_fast(processor))
        if not best or not bundle.has_engine(NAME, wanted, bundle.manifest.pipeline.step.graph):
            return None
        runners = {entry.runs_on[0] for entry in bundle.manifest.engines if entry.runs_on}
        return wanted if all(RUNNERS[name].available()[0] for name in runners) else None

    def load(self, name: str) -> Graph:
        """Load a program, or a graph that the manifest gives to another runtime; BackendError when this machine cannot run
        it, BundleError when it is damaged."""
        precision = self.computes_in(name)
        entry = self.bundle.engine(NAME, precision, name)
        if entry.runs_on:
            return RUNNERS[entry.runs_on[0]].open(self.bundle, "f32", self.threads).load(name)
        where, beside = (str(self.bundle.path / entry.files[label].file) for label in ("program", "weights"))
        weights = mapped_weights(self.bundle.map_engine(entry, "weights"), beside)
        program = self.bundle.read_engine(entry, "program")
        spec, canvas = self.bundle.spec(name), self.bundle.canvas
        return open_graph(program, weights, spec, name, precision, self.threads, where, canvas)

    def load_beside(self, name: str, graph: Graph) -> Graph:
        """Over the same weights, where the graph is the engine's own."""
        if isinstance(graph, NativeGraph):
            return graph.resized(self.bundle.spec(name), self.bundle.canvas)
        return self.load(name)

    def working_bytes(self, batch: int) -> int:
        """Of the engine's own graphs, of which one runs at a time and all keep what they have touched."""
        with self._loading:
            own = [graph for graph in self._graphs.values() if isinstance(graph, NativeGraph)]
        return sum(graph.working_bytes(batch) for graph in own)

    def enter_child(self) -> None:
        """As every backend's; what another runtime runs is loaded again when it is asked for, having left its threads."""
        super().enter_child()
        self._graphs = {name: graph for name, graph in self._graphs.items() if isinstance(graph, NativeGraph)}

    def chain(self) -> NativeChain:
        """The chain on the host, with its loop in one call where nothing watches it."""
        return NativeChain(self)
