"""The manifest of a bundle as typed values, and every reason for which one is refused.

Unknown keys are refused at every level but those that the engine does not read (`architecture`, `built_with`, an engine's
`made_with`, `options` and `record`), so that a misspelt field is never taken for an absent one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from engine.bundle.directions import DirectionsSpec, check_directions, parse_directions
from engine.bundle.engines import (
    EngineSpec,
    PriorSpec,
    check_engine_sources,
    parse_engines,
    parse_prior,
    parse_versions,
)
from engine.bundle.fields import FILE_NAME, REBUILD, Fields, parse_json, refuse, shorten
from engine.bundle.files import FileSpec
from engine.bundle.fitted import Fitted, check_fitted, parse_fitted
from engine.bundle.following import OPTIONAL, AugmentationSpec, NextSpec, parse_augmentation, parse_next
from engine.bundle.graphs import SAMPLER, GraphSpec, check_twins, graph_of, parse_graphs
from engine.bundle.guides import GuideDefaults, parse_guide
from engine.bundle.inputs import EACH_STEP, NORMAL, InputSpec, parse_inputs
from engine.bundle.limits import FORMAT_VERSION, MAX_MANIFEST_BYTES
from engine.bundle.pipeline import VARIANCE, PipelineSpec
from engine.bundle.pipeline_reader import parse_pipeline
from engine.bundle.regulariser import RegulariseDefaults, parse_regularise
from engine.bundle.schema import read, take
from engine.bundle.starts import Starts, check_starts, parse_starts
from engine.bundle.training import Defaults, ScheduleSpec, Source, parse_schedule, parse_source
from engine.bundle.vocabulary import TextSpec, parse_text
from engine.bundle.whole import check_sampler
from engine.errors import BundleError
from engine.solver.levels import FIXED_VARIANCES, LEARNED_RANGE, VARIANCES
from engine.solver.prediction import PREDICTIONS

FORMAT = "diffusevae-bundle"


@dataclass(frozen=True)
class Manifest:
    """A manifest that passed every check; `graphs` by key: `denoiser`, `denoiser.fp16`, `sampler`, ... (`graph_key`)."""

    name: Annotated[str, Fields.text]
    family: Annotated[str, Fields.label]
    architecture: Annotated[dict[str, Any], Fields.free]
    inputs: tuple[InputSpec, ...]
    pipeline: PipelineSpec
    schedule: ScheduleSpec
    prediction: Annotated[str, Fields.choice, tuple(PREDICTIONS)]
    variance: Annotated[str, Fields.choice, VARIANCES]
    defaults: Defaults
    fitted: Fitted | None
    refine: Starts | None
    source: Annotated[Source, parse_source]
    backends: Annotated[tuple[str, ...], parse_backends]
    graphs: dict[str, GraphSpec]
    prior: PriorSpec | None
    directions: DirectionsSpec | None
    text: TextSpec | None
    augmentation: AugmentationSpec | None
    next: NextSpec | None
    engines: tuple[EngineSpec, ...]
    built_with: Annotated[dict[str, str], parse_versions]
    guide: GuideDefaults | None = None
    regularise: RegulariseDefaults | None = None

    @property
    def drawn(self) -> InputSpec | None:
        """The input that is drawn once a sample when it is not given, if there is one."""
        return next((spec for spec in self.inputs if spec.draw == NORMAL), None)

    @property
    def fresh(self) -> InputSpec | None:
        """The input that is drawn anew for every row when it is not given, if there is one."""
        return next((spec for spec in self.inputs if spec.draw == EACH_STEP), None)

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """Every file of the bundle beside the manifest itself."""
        return tuple(spec for _, spec in self._named_files())

    def _named_files(self) -> Iterator[tuple[str, FileSpec]]:
        for key, graph in self.graphs.items():
            yield f"graphs.{key}", graph
            if graph.weights is not None:
                yield f"graphs.{key}.weights", graph.weights
        if self.prior is not None:
            yield "prior", self.prior
        if self.directions is not None:
            yield "directions", self.directions
        if self.text is not None:
            yield "text", self.text
        for index, engine in enumerate(self.engines):
            for label, file in engine.files.items():
                yield f"engines[{index}].files.{label}", file

    def check_file_names(self, where: str) -> None:
        """Refuse two entries with one file, also where they differ in case alone: some disks know no case."""
        seen: set[str] = set()
        for field, spec in self._named_files():
            if spec.file.lower() in seen:
                refuse(where, f"{field}.file", spec.file, "a file of its own for each entry")
            seen.add(spec.file.lower())


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Check the bytes of a manifest.json; BundleError names the field, what was found and what was expected."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{where}: found a manifest of {len(data)} bytes or more, expected at most {MAX_MANIFEST_BYTES}; {REBUILD}"
        )
    return check_manifest(parse_json(data, where), where)


def check_manifest(raw: object, where: str, *, hashed: bool = True) -> Manifest:
    """Check a manifest that is already parsed. The version is looked at before any field whose meaning it decides.

    hashed: whether every SHA-256 is there already, so that engines can be held against what they were built from.
    """
    top = Fields(raw, where, "")
    top.choice("format", (FORMAT,))
    _check_version(top.integer("format_version", 0, 2**31), where)
    inputs = parse_inputs(top)
    graphs = parse_graphs(top.object("graphs"))
    check_twins(top, graphs)
    schedule = parse_schedule(top.object("schedule"))
    taken = take(Manifest, top)
    pipeline = parse_pipeline(top.object("pipeline"), inputs, _single(graphs))
    manifest = Manifest(
        **taken,
        inputs=inputs,
        pipeline=pipeline,
        schedule=schedule,
        defaults=read(Defaults, top.object("defaults"), T=schedule.T, last=schedule.T - 1),
        fitted=parse_fitted(top, schedule.T),
        refine=parse_starts(top, schedule.T),
        graphs=graphs,
        prior=parse_prior(top, inputs),
        directions=parse_directions(top, inputs),
        text=parse_text(top, inputs),
        augmentation=parse_augmentation(top, inputs),
        next=parse_next(top),
        guide=parse_guide(top, pipeline, schedule.T),
        regularise=parse_regularise(top, pipeline, schedule.T),
        engines=parse_engines(top, graphs, pipeline.step.graph),
    )
    top.done(OPTIONAL)
    _check_all_used(top, manifest)
    _check_variance(top, manifest)
    check_sampler(top, graphs, inputs, manifest.pipeline)
    manifest.check_file_names(where)
    if hashed:
        check_engine_sources(manifest.engines, manifest.graphs, manifest.source, where)
        check_fitted(manifest, where)
        check_directions(manifest, where)
        check_starts(manifest, where)
    return manifest


def _single(graphs: Mapping[str, GraphSpec]) -> dict[str, GraphSpec]:
    """The graphs that a pipeline may name: those in float32 but the whole sampler."""
    return {key: graph for key, graph in graphs.items() if graph_of(key) == key and key != SAMPLER}


def _check_all_used(top: Fields, manifest: Manifest) -> None:
    """A graph that the pipeline never runs is a misspelt name, or weights that nothing needs."""
    used = (*manifest.pipeline.graphs, SAMPLER)
    for key in manifest.graphs:
        if graph_of(key) not in used:
            top.object("graphs").refuse(key, f"graphs that the pipeline runs: {shorten(', '.join(used))}")


def _check_variance(top: Fields, manifest: Manifest) -> None:
    """What the network learned of the variance is its second output."""
    if manifest.variance == LEARNED_RANGE and not manifest.pipeline.learns_variance:
        fixed = " or ".join(map(repr, FIXED_VARIANCES))
        top.refuse("variance", f"{fixed}, or a second output in pipeline.step.outputs, called {VARIANCE!r}")


def _check_version(version: int, where: str) -> None:
    if version == FORMAT_VERSION:
        return
    newer = version > FORMAT_VERSION
    cure = "upgrade diffusevae-engine to the version that wrote it" if newer else REBUILD
    raise BundleError(
        f"{where}, format_version: found {version}, expected {FORMAT_VERSION}: the bundle was written by "
        f"{'a newer' if newer else 'an older'} engine; {cure}"
    )


def parse_backends(fields: Fields, key: str) -> tuple[str, ...]:
    """Names, each once; any are let through, as a bundle may hold graphs for a runtime that only a later engine knows."""
    expected = "a list of different backend names"
    names = fields.items(key, expected)
    if any(type(name) is not str or not FILE_NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
        fields.refuse(key, expected)
    return tuple(names)
