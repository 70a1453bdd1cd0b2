"""Built engines and a fitted prior: what may lie in a bundle beside its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.bundle.fields import REBUILD, SHA256, Fields, shorten
from engine.bundle.files import HEXADECIMAL, FileSpec, parse_file
from engine.bundle.graphs import PRECISIONS, SAMPLER, GraphSpec, graph_of
from engine.bundle.inputs import InputSpec
from engine.bundle.limits import MAX_COMPONENTS, MAX_ENGINE_BYTES, MAX_TEXT
from engine.bundle.training import Source
from engine.errors import BundleError

ENGINE_FILES = {  # backend -> the labels of an engine's files
    "native": ("program", "weights"),
    "tensorrt_rtx": ("plan",),
    "tensorrt": ("plan",),
}


@dataclass(frozen=True)
class EngineSpec:
    """One graph built for one backend in one precision: `files` by label, `targets` what it was built to run on.

    `options` is what a rebuild must match, `record` what was measured; both are the backend's own.
    """

    backend: str
    precision: str
    graph: str
    files: dict[str, FileSpec]
    source_sha256: str
    made_with: dict[str, str]
    targets: tuple[str, ...]
    options: dict[str, Any]
    record: dict[str, Any]

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

    input: str
    kind: str
    components: int


def parse_engines(top: Fields, graphs: Mapping[str, GraphSpec]) -> tuple[EngineSpec, ...]:
    """The list `engines`: each at most once for a backend, a precision and a graph."""
    names = tuple(dict.fromkeys((*(graph_of(key) for key in graphs), SAMPLER)))
    engines: list[EngineSpec] = []
    for fields in top.objects("engines", "a list of engines, which may be empty", empty=True):
        engine = _engine(fields, names)
        if engine.name in [other.name for other in engines]:
            fields.refuse("graph", f"one engine for {engine.backend}, {engine.precision} and this graph")
        engines.append(engine)
    return tuple(engines)


def _engine(fields: Fields, graphs: tuple[str, ...]) -> EngineSpec:
    backend = fields.choice("backend", tuple(ENGINE_FILES))
    files = fields.object("files")
    engine = EngineSpec(
        backend=backend,
        precision=fields.choice("precision", PRECISIONS),
        graph=fields.choice("graph", graphs),
        files={label: _file(files.object(label)) for label in ENGINE_FILES[backend]},
        source_sha256=fields.matching("source_sha256", SHA256, HEXADECIMAL),
        made_with=parse_versions(fields.object("made_with")),
        targets=_targets(fields),
        options=fields.free("options"),
        record=fields.free("record"),
    )
    files.done()
    fields.done()
    return engine


def _file(fields: Fields) -> FileSpec:
    spec = parse_file(fields, MAX_ENGINE_BYTES)
    fields.done()
    return spec


def _targets(fields: Fields) -> tuple[str, ...]:
    expected = "a list of printable texts, which may be empty"
    targets = fields.array("targets", expected)
    if not all(type(text) is str and 1 <= len(text) <= MAX_TEXT and text.isprintable() for text in targets):
        fields.refuse("targets", expected)
    return tuple(targets)


def parse_versions(fields: Fields) -> dict[str, str]:
    """{name: version} under any names."""
    versions = {key: fields.text(key) for key in fields}
    fields.done()
    return versions


def parse_prior(top: Fields, inputs: tuple[InputSpec, ...]) -> PriorSpec | None:
    """The field `prior`: null, or the entry of a fitted density of the input that is drawn."""
    if top.take("prior", "an object or null") is None:
        return None
    drawn = [spec.name for spec in inputs if spec.draw is not None]
    if not drawn:
        top.refuse("prior", "null, since no input is drawn")
    fields = top.object("prior")
    file = parse_file(fields)
    prior = PriorSpec(
        file=file.file,
        size=file.size,
        sha256=file.sha256,
        input=fields.choice("input", drawn),
        kind=fields.choice("kind", ("gaussian_mixture",)),
        components=fields.integer("components", 1, MAX_COMPONENTS),
    )
    fields.done()
    return prior


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
