"""Built engines and a fitted prior: what may lie in a bundle beside its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from engine.bundle.fields import REBUILD, Fields, is_text, shorten
from engine.bundle.files import MAX_GRAPH_BYTES, FileSpec
from engine.bundle.graphs import PRECISIONS, SAMPLER, GraphSpec, graph_of
from engine.bundle.inputs import InputSpec, read_of_drawn
from engine.bundle.schema import read, take
from engine.bundle.training import Source
from engine.errors import BundleError

ENGINE_FILES = {  # backend -> the labels of an engine's files
    "native": ("program", "weights"),
    "tensorrt_rtx": ("plan",),
    "tensorrt": ("plan",),
}
SHARED = "native"  # the backend whose graphs others may run, where the manifest says so
RUNNERS = ("onnxruntime", "openvino")  # which those may be: what takes the bundle's own graphs on a CPU


@dataclass(frozen=True)
class EngineSpec:
    """One graph built for one backend in one precision: `files` by label, `targets` what it was built to run on.

    `options` is what a rebuild must match, `record` what was measured; both are the backend's own. runs_on: in place of
    files, the backends that run the bundle's graph in float32 for this one; a runtime takes the first that it has a
    backend of, installed or not, so that the same graph runs in the same way wherever the same runtime opens the bundle.
    """

    backend: Annotated[str, Fields.choice, tuple(ENGINE_FILES)]
    precision: Annotated[str, Fields.choice, PRECISIONS]
    graph: Annotated[str, Fields.choice, "graphs"]
    files: dict[str, FileSpec]
    source_sha256: Annotated[str, Fields.sha256]
    made_with: Annotated[dict[str, str], parse_versions]
    targets: Annotated[tuple[str, ...], parse_targets]
    options: Annotated[dict[str, Any], Fields.free]
    record: Annotated[dict[str, Any], Fields.free]
    runs_on: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.backend} {self.precision} {self.graph}"

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class PriorSpec(FileSpec):
    """The density that an input is drawn from instead of N(0, I), and the file that holds it."""

    size: Annotated[int, Fields.integer, 1, MAX_GRAPH_BYTES]
    input: Annotated[str, Fields.choice, "drawn"]
    kind: Annotated[str, Fields.choice, ("gaussian_mixture",)]
    components: Annotated[int, Fields.integer, 1, 65_536]


def parse_engines(top: Fields, graphs: Mapping[str, GraphSpec], step: str) -> tuple[EngineSpec, ...]:
    """The list `engines`: each at most once for a backend, a precision and a graph. step: the graph in the loop."""
    names = tuple(dict.fromkeys((*(graph_of(key) for key in graphs), SAMPLER)))
    engines: list[EngineSpec] = []
    for fields in top.objects("engines", "a list of engines, which may be empty", empty=True):
        engine = _engine(fields, names)
        if engine.runs_on and engine.graph in (step, SAMPLER):
            fields.refuse("graph", f"another graph than {engine.graph}, which a backend runs itself")
        if engine.name in [other.name for other in engines]:
            fields.refuse("graph", f"one engine for {engine.backend}, {engine.precision} and this graph")
        engines.append(engine)
    return tuple(engines)


def _engine(fields: Fields, graphs: tuple[str, ...]) -> EngineSpec:
    found = take(EngineSpec, fields, graphs=graphs)
    if "runs_on" in fields:
        runners = _runners(fields, found["backend"])
        fields.done()
        return EngineSpec(**found, files={}, runs_on=runners)
    files = fields.object("files")
    specs = {label: read(FileSpec, files.object(label)) for label in ENGINE_FILES[found["backend"]]}
    files.done()
    fields.done()
    return EngineSpec(**found, files=specs)


def _runners(fields: Fields, backend: str) -> tuple[str, ...]:
    """`runs_on`, which stands in place of `files`."""
    expected = f"a list of {' and '.join(map(repr, RUNNERS))}, each at most once, of an engine of {SHARED!r}"
    names = fields.items("runs_on", expected)
    if backend != SHARED or any(name not in RUNNERS for name in names) or len(set(names)) < len(names):
        fields.refuse("runs_on", expected)
    return tuple(names)


def parse_targets(fields: Fields, key: str) -> tuple[str, ...]:
    """Printable texts, or none."""
    expected = "a list of printable texts, which may be empty"
    targets = fields.array(key, expected)
    if not all(is_text(text) for text in targets):
        fields.refuse(key, expected)
    return tuple(targets)


def parse_versions(fields: Fields, key: str) -> dict[str, str]:
    """{program: version} under any names."""
    versions = fields.object(key)
    return {name: versions.text(name) for name in versions}


def parse_prior(top: Fields, inputs: tuple[InputSpec, ...]) -> PriorSpec | None:
    """The field `prior`: null, or the entry of a fitted density of the input that is drawn."""
    return read_of_drawn(PriorSpec, top, "prior", inputs)


def check_engine_sources(
    engines: tuple[EngineSpec, ...], graphs: Mapping[str, GraphSpec], source: Source, where: str
) -> None:
    """Refuse an engine that was built from other graphs or another checkpoint than those of this bundle."""
    known = {graph.sha256 for graph in graphs.values()} | {source.sha256, source.other_sha256}
    for index, engine in enumerate(engines):
        if engine.source_sha256 not in known:
            raise BundleError(
                f"{where}, engines[{index}].source_sha256: found {shorten(engine.source_sha256)}, expected the SHA-256 of "
                f"a graph of this bundle or of its checkpoint: {engine.name} was built from something else; {REBUILD}"
            )
