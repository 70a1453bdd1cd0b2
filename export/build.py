"""From a checkpoint to a bundle: recognise, load, export and check each graph, build engines, write; one function each."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import engine
from engine.bundle.graphs import SAMPLER
from engine.bundle.limits import FORMAT_VERSION
from engine.bundle.manifest import FORMAT
from engine.bundle.reader import Bundle
from engine.bundle.vocabulary import TextSpec
from engine.bundle.writer import Content, check_place, write_bundle
from engine.errors import ArgumentError, BundleError, CheckpointError, ExportError
from engine.solver.regulariser import OFF
from engine.solver.table import build_step_table
from export.context import Graph, Watch
from export.engines import ENGINE_BUILDERS, BuildContext, BuiltEngine, EngineBuilder, load_builder
from export.families import family_of, folder_family
from export.families.base import Model, Recognised, Source
from export.feature_guides import FeatureGuide, with_feature_guide
from export.graphs.extra import GraphOptions, extra_graphs
from export.graphs.onnx_export import OPSET, export_onnx
from export.graphs.parity import batches_of, measure
from export.graphs.roles import entry_of, weights_file
from export.graphs.sampler_role import BATCHES as SAMPLER_BATCHES
from export.guide_files import with_guide_files
from export.guide_options import split
from export.guides import OwnGuide, with_guides
from export.latent_prior import PRIOR_FILE, FittedPrior, check_prior, read_prior_file
from export.plan import PrecisionPlan, check_backends, plan_precisions
from export.read.checkpoint import Selection, read_checkpoint
from export.read.schedule import entry_of as schedule_entry
from export.regulariser import with_regulariser
from export.regulariser_options import RegulariserOptions
from export.regulariser_options import split as split_regulariser
from export.vocabulary import read_vocabulary_file, with_text

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Request:
    """What to build: the files, which weights, for which backends, and what was said of the model.

    other           a second file that the model needs, such as the checkpoint of its first stage
    key             which of several sets of weights in the file, as the refusal lists them
    precisions      empty for float32 graphs and, for each backend with engines of its own, the precision it is best in
    options         of the model's family, of guides in files (export/guide_options.py) and of a regulariser
                    (export/regulariser_options.py), by name; None is not said
    engine_options  of the builders of engines: each takes what it knows
    graph_options   graphs beside the pipeline's own in float32, and which of their layers are in half
    if_fit          leave out a backend that has no operations for this model, instead of refusing it
    guides          classifiers of one's own that guide it, and the scale and mode that the bundle records for them
    feature_guide   in their place, a loss of what the network's own layers give (export/feature_guides.py)
    """

    checkpoint: Path
    other: Path | None = None
    out: Path | None = None
    weights: str = "ema"
    key: str | None = None
    backends: tuple[str, ...] = ("onnxruntime", "openvino")
    precisions: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    graph_options: GraphOptions = field(default_factory=GraphOptions)
    latent_prior: Path | None = None
    vocabulary: Path | None = None
    if_fit: bool = False
    guides: tuple[OwnGuide, ...] = ()
    feature_guide: FeatureGuide | None = None
    guide_scale: float = 1.0
    guide_mode: str = "constant"


@dataclass(frozen=True)
class Built:
    """What a build made; `text` where the bundle takes words."""

    path: Path
    model: Model
    source: Source
    graphs: tuple[Graph, ...]
    engines: tuple[BuiltEngine, ...] = ()
    text: TextSpec | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before engines are built: the plan, and the exported and checked graphs."""

    path: Path
    source: Source
    plan: PrecisionPlan
    builders: Mapping[str, EngineBuilder]
    context: BuildContext
    backends: tuple[str, ...]
    prior: FittedPrior | None = None
    text: tuple[TextSpec, bytes] | None = None


def build(request: Request, watch: Watch | None = None) -> Built:
    """Build a bundle. Any EngineError leaves an older bundle at the same place untouched."""
    watch = watch or Watch()
    prepared = prepare(request, watch)
    context, path = prepared.context, prepared.path
    engines = build_engines(context, prepared.plan.engines, prepared.builders, request.engine_options)
    with watch.stage("write"):
        manifest = manifest_of(context.model, prepared.source, context.graphs, prepared.backends, engines)
        files: dict[str, Content] = {name: data for graph in context.graphs for name, data in graph.files.items()}
        files |= {name: data for engine in engines for name, data in engine.files.items()}
        if prepared.prior is not None:
            assert context.model.drawn is not None, "check_prior refuses a model without an input that is drawn"
            manifest["prior"] = prepared.prior.entry(context.model.drawn.name)
            files[PRIOR_FILE] = prepared.prior.data
        if prepared.text is not None:
            spec, files[spec.file] = prepared.text
            manifest["text"] = dataclasses.asdict(spec)
        write_bundle(path, manifest, files)
    text = None if prepared.text is None else prepared.text[0]
    return Built(path, context.model, prepared.source, context.graphs, tuple(engines), text)


def prepare(request: Request, watch: Watch) -> Prepared:
    """Refuse what cannot be built, then recognise, load, and export and check every graph; nothing is written."""
    runtimes = check_backends(request.backends)
    builders = {name: load_builder(name) for name in request.backends if name in ENGINE_BUILDERS}
    plan = plan_precisions(request.precisions, builders)
    for builder in builders.values():
        builder.check(request.engine_options)
    if request.out is not None:
        check_place(request.out)
    prior = read_prior_file(request.latent_prior) if request.latent_prior else None
    vocabulary, text = read_vocabulary_file(request.vocabulary) if request.vocabulary else None, None
    regulariser, others = split_regulariser(request.options)
    guide, _ = split(others)
    if bool(request.guides) + (request.feature_guide is not None) + bool(guide.guide) > 1:
        raise ArgumentError(
            "guides: found guides of several kinds, expected guides, feature_guide or the option guide; leave out the others"
        )
    with watch.stage("read"):
        found = recognise(request)
    watch.inferred(found)
    path = request.out or Path(f"{found.name}.bundle")
    if request.out is None:
        check_place(path)
    options = request.graph_options.for_targets(request.engine_options.get("targets") or ())
    source = found.source
    with watch.stage("load weights"):
        model = found.load()
        if request.guides:
            model = with_guides(model, request.guides, scale=request.guide_scale, mode=request.guide_mode)
        if request.feature_guide is not None:
            given = request.feature_guide
            model = with_feature_guide(model, given, scale=request.guide_scale, mode=request.guide_mode)
        if guide.guide:
            model, source = with_guide_files(model, source, guide, watch)
        if regulariser.regulariser is not None:
            model, source = with_second(model, source, regulariser, request.weights, watch)
        model = options.of(model, plan.graphs)
        backends = tuple(name for name in request.backends if _fits(name, builders, model, request.if_fit, watch))
    builders = {name: builder for name, builder in builders.items() if name in backends}
    plan = dataclasses.replace(plan, engines=tuple(entry for entry in plan.engines if entry[0] in backends))
    if vocabulary is not None:
        model, spec = with_text(model, vocabulary)
        text = spec, vocabulary.data
    check_place(path, size_of(model, plan, options))
    check_defaults(model, source)
    if prior is not None:
        check_prior(prior, model)
    model, graphs = export_graphs(model, runtimes, watch)
    context = BuildContext(model, tuple(graphs), watch, _previous(path))
    extra = extra_graphs(context, plan.graphs, options, backends)
    context = dataclasses.replace(context, graphs=(*graphs, *extra))
    return Prepared(path, source, plan, builders, context, backends, prior, text)


def _fits(name: str, builders: Mapping[str, EngineBuilder], model: Model, if_fit: bool, watch: Watch) -> bool:
    """Whether a backend stays among those that the bundle is for; ExportError where it was asked for and cannot."""
    unfit = builders[name].unfit(model) if name in builders else None
    if unfit is None:
        return True
    if not if_fit:
        raise ExportError(f"{unfit}; leave {name} out of --backends")
    watch.note(f"backend {name} is left out: {unfit}")
    return False


def recognise(request: Request) -> Recognised:
    """Read the checkpoint and let its family settle what model it is."""
    _, others = split_regulariser(request.options)
    _, options = split(others)
    return recognise_file(request.checkpoint, Selection(request.weights, request.key), options, request.other)


def recognise_file(path: Path, which: Selection, options: Mapping[str, Any], other: Path | None = None) -> Recognised:
    """The model in a file or a folder, as its family has it."""
    folder = folder_family(path)
    if folder is not None:
        return folder.recognise_folder(path, options)
    checkpoint = read_checkpoint(path, which)
    return family_of(checkpoint).recognise(checkpoint, other, which.weights, options)


def with_second(
    model: Model, source: Source, said: RegulariserOptions, weights: str, watch: Watch
) -> tuple[Model, Source]:
    """The model with that of another file as its regulariser; the file is recorded as the second one where there is none."""
    path = said.regulariser
    assert path is not None, "there is one"
    found = recognise_file(path, Selection(weights), said.regulariser_options or {})
    second = found.load()
    mode, interval = said.regularise or OFF, said.regularise_interval
    model = with_regulariser(model, second, path, mode=mode, interval=None if interval is None else (*interval,))
    checkpoint = found.source.checkpoint
    watch.note(f"regulariser: {second.name}, of the family {second.family}, predicts {second.prediction}")
    entry = {"file": checkpoint.path.name, "sha256": checkpoint.sha256, "weights": found.source.weights}
    model = dataclasses.replace(model, architecture={**model.architecture, "regulariser": entry})
    return model, source if source.other else dataclasses.replace(source, other=checkpoint)


def check_defaults(model: Model, source: Source) -> None:
    """Try the recorded defaults: settings that cannot be sampled are refused now."""
    pipeline = model.wiring
    try:
        build_step_table(
            model.schedule.schedule(),
            prediction=model.prediction,
            centred=pipeline.state.centre is not None,
            clip=pipeline.state.clip,
            variance=model.variance,
            **model.defaults,
        )
    except ArgumentError as error:
        raise CheckpointError(
            f"{source.checkpoint.path}: found default sampling settings that cannot be used ({error}); write the checkpoint "
            "again with defaults that can"
        ) from error


def export_graphs(model: Model, runtimes: Sequence[str], watch: Watch) -> tuple[Model, list[Graph]]:
    """Every graph in float32, each checked in every runtime; and the model, of one size alone where a graph has no other."""
    multiple = model.wiring.multiple  # refused before the first export, where a family wires its graphs wrongly
    try:
        return model, _exported(model, runtimes, watch)
    except ExportError as error:
        if multiple is None:
            raise
        watch.note(f"the bundle makes images of one size, and others in tiles: {error}")
    model = dataclasses.replace(model, pipeline={**model.pipeline, "multiple": None})
    return model, _exported(model, runtimes, watch)


def _exported(model: Model, runtimes: Sequence[str], watch: Watch) -> list[Graph]:
    graphs = []
    for role in model.roles.values():
        free = model.free(role.name)
        with watch.stage(f"export {role.name}"):
            found = export_onnx(role, free)
        with watch.stage(f"check {role.name}"):
            parity = measure(role, found, runtimes, model.example, free=free)
        graphs.append(Graph(role, found.data, parity, found.weights))
    return graphs


def build_engines(
    context: BuildContext,
    plan: Sequence[tuple[str, str]],
    builders: Mapping[str, EngineBuilder],
    options: Mapping[str, Any],
) -> list[BuiltEngine]:
    """The engines of each (backend, precision) in turn; one that two precisions share is taken once."""
    engines: dict[tuple[str, ...], BuiltEngine] = {}
    for backend, precision in plan:
        with context.watch.stage(f"build {backend} {precision}"):
            for engine in builders[backend].build(context, precision, options):
                key = tuple(engine.entry[name] for name in ("backend", "precision", "graph"))
                if engines.setdefault(key, engine).files != engine.files:
                    raise ExportError(
                        f"engine {' '.join(key)}: found that it was built twice with different results, expected the same; "
                        "build one precision at a time"
                    )
    return list(engines.values())


def _previous(path: Path) -> Bundle | None:
    """The older bundle at the place of the new one; a damaged one, or one of another version, has nothing to offer."""
    try:
        return Bundle.open(path)
    except BundleError:
        return None


def size_of(model: Model, plan: PrecisionPlan, options: GraphOptions) -> int:
    """About how many bytes the bundle will have: a graph of the whole sampler has all weights again, others half of them."""
    parameters = {id(p): p for role in model.roles.values() for p in role.module.parameters()}
    copies = 1 + options.whole_sampler + (len(plan.graphs) + len(plan.engines)) / 2
    return int(sum(p.nbytes for p in parameters.values()) * copies)


def manifest_of(
    model: Model,
    source: Source,
    graphs: Sequence[Graph],
    backends: Sequence[str],
    engines: Sequence[BuiltEngine] = (),
) -> dict[str, Any]:
    """The manifest of the bundle, without the sizes and hashes that writing fills in."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": model.name,
        "family": model.family,
        "architecture": {**model.architecture, "notes": list(model.notes)},
        "inputs": [dict(entry) for entry in model.inputs],
        "pipeline": dict(model.pipeline),
        "schedule": schedule_entry(model.schedule),
        "prediction": model.prediction,
        "variance": model.variance,
        "defaults": dict(model.defaults),
        "source": {
            "file": source.checkpoint.path.name,
            "sha256": source.checkpoint.sha256,
            "weights": source.weights,
            "other_file": source.other.path.name if source.other else None,
            "other_sha256": source.other.sha256 if source.other else None,
        },
        "backends": list(backends),
        "graphs": {graph.key: _graph_entry(graph) for graph in graphs},
        "fitted": None,
        "refine": None,
        "prior": None,
        "directions": None,
        "text": None,
        "engines": [engine.entry for engine in engines],
        "built_with": _versions(),
        **({} if model.guide is None else {"guide": dict(model.guide)}),
        **({} if model.regularise is None else {"regularise": dict(model.regularise)}),
    }


def _graph_entry(graph: Graph) -> dict[str, Any]:
    return {
        "file": graph.file,
        "weights": {"file": weights_file(graph.role)} if graph.weights else None,
        "precision": graph.role.precision,
        "opset": OPSET,
        "inputs": [entry_of(tensor) for tensor in graph.role.inputs],
        "outputs": [entry_of(tensor) for tensor in graph.role.outputs],
        "compute": dict(graph.role.compute),
        "parity": {
            "reference": f"torch {torch.__version__} float32",
            "max_relative_error": max(graph.parity.values()),
            "batches": list(SAMPLER_BATCHES if graph.role.name == SAMPLER else batches_of(graph.role)),
            "runtimes": graph.parity,
        },
    }


def _versions() -> dict[str, str]:
    versions = {"diffusevae-engine": engine.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # built without it, so there is no version to record
    return versions
