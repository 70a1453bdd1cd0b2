"""How does a checkpoint become a bundle? Read, infer, then export and check each graph, then write; one function each."""

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
from engine.bundle.manifest import FORMAT, FORMAT_VERSION, MANIFEST_FILE, SAMPLER
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.errors import ArgumentError, BundleError, CheckpointError, ExportError
from engine.solver.table import Schedule, build_step_table
from export.context import Graph, Source, Watch
from export.engines import ENGINE_BUILDERS, BuildContext, BuiltEngine, EngineBuilder, load_builder
from export.families.architecture import Architecture, infer
from export.graphs.extra import GraphOptions, extra_graphs
from export.graphs.onnx_export import OPSET, export_onnx
from export.graphs.parity import BATCHES, measure
from export.graphs.roles import TimestepTable, roles
from export.graphs.sampler_role import BATCHES as SAMPLER_BATCHES
from export.latent_prior import PRIOR_FILE, FittedPrior, check_prior, read_prior_file
from export.models.layouts import from_checkpoint
from export.models.unet import UNet
from export.models.vae import VAE
from export.plan import PrecisionPlan, check_backends, plan_precisions
from export.read.checkpoint import as_float32, read_checkpoint
from export.read.evidence import Evidence, Options
from export.read.parts import select, split, vae_stage

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Request:
    """What to build: the files, which weights, for which backends, and what the user said about the model.

    precisions: empty for float32 graphs and, for each backend with engines of its own, the precision that it is best in.
    engine_options: what the builders of engines are told, each takes what it knows.
    graph_options: which graphs there are beside one float32 graph a role, and which of their layers are in half.
    """

    checkpoint: Path
    vae: Path | None = None
    out: Path | None = None
    weights: str = "ema"
    backends: tuple[str, ...] = ("onnxruntime", "openvino")
    precisions: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    graph_options: GraphOptions = field(default_factory=GraphOptions)
    latent_prior: Path | None = None


@dataclass(frozen=True)
class Built:
    """What a build made."""

    path: Path
    architecture: Architecture
    source: Source
    graphs: tuple[Graph, ...]
    engines: tuple[BuiltEngine, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before engines are built: what was planned, and the exported and checked graphs."""

    path: Path
    plan: PrecisionPlan
    builders: Mapping[str, EngineBuilder]
    context: BuildContext
    prior: FittedPrior | None = None


def build(request: Request, watch: Watch | None = None) -> Built:
    """Build a bundle. Any EngineError leaves an older bundle at the same place untouched."""
    watch = watch or Watch()
    prepared = prepare(request, watch)
    context, path = prepared.context, prepared.path
    engines = build_engines(context, prepared.plan.engines, prepared.builders, request.engine_options)
    with watch.stage("write"):
        row_width = context.unet.row_width
        manifest = manifest_of(context.architecture, context.source, context.graphs, request.backends, row_width, engines)
        files = {graph.file: graph.model for graph in context.graphs}
        files |= {name: data for engine in engines for name, data in engine.files.items()}
        if prepared.prior is not None:
            manifest["latent_prior"] = prepared.prior.entry()
            files[PRIOR_FILE] = prepared.prior.data
        write_bundle(path, manifest, files)
    return Built(path, context.architecture, context.source, context.graphs, tuple(engines))


def prepare(request: Request, watch: Watch) -> Prepared:
    """Refuse what cannot be built, then read, infer, and export and check every graph; nothing is written."""
    runtimes = check_backends(request.backends)
    builders = {name: load_builder(name) for name in request.backends if name in ENGINE_BUILDERS}
    plan = plan_precisions(request.precisions, builders)
    for builder in builders.values():
        if hasattr(builder, "check"):
            builder.check(request.engine_options)
    if request.out is not None:
        check_out(request.out)
    prior = read_prior_file(request.latent_prior) if request.latent_prior else None
    with watch.stage("read"):
        source = read(request)
    with watch.stage("infer"):
        architecture = infer_architecture(source, request.options)
    if prior is not None:
        check_prior(prior, architecture, source)
    watch.inferred(architecture, source)
    with watch.stage("load weights"):
        unet, vae = load(source, architecture)
    path = request.out or Path(f"{architecture.name}.bundle")
    graphs = export_graphs(unet, vae, architecture.T, runtimes, watch)
    context = BuildContext(architecture, source, unet, vae, tuple(graphs), watch, _previous(path))
    graph_options = request.graph_options.for_targets(request.engine_options.get("targets") or ())
    extra = extra_graphs(context, plan.graphs, graph_options, request.backends)
    return Prepared(path, plan, builders, dataclasses.replace(context, graphs=(*graphs, *extra)), prior)


def export_graphs(unet: UNet, vae: VAE | None, T: int, runtimes: Sequence[str], watch: Watch) -> list[Graph]:
    """The graph of every role in float32, each checked in every runtime."""
    graphs = []
    wanted = roles(unet, vae, T)
    table = wanted["timestep_table"].module
    assert isinstance(table, TimestepTable)
    for role in wanted.values():
        with watch.stage(f"export {role.name}"):
            model = export_onnx(role)
        with watch.stage(f"check {role.name}"):
            graphs.append(Graph(role, model, measure(role, model, runtimes, table)))
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
                key = tuple(engine.entry[name] for name in ("backend", "precision", "role"))
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


def check_out(path: Path) -> None:
    """Refuse a place that writing would refuse a minute later: a file, or a folder that holds no bundle."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST_FILE).exists()):
        raise ArgumentError(
            f"--out {path}: found {'a file' if path.is_file() else 'a folder that is no bundle'}, expected nothing, an "
            "empty folder or an older bundle; choose another --out"
        )


def read(request: Request) -> Source:
    """Read the checkpoint and, where given, the VAE's own; the latter replaces a VAE inside the former."""
    checkpoint = read_checkpoint(request.checkpoint)
    parts = split(checkpoint)
    network = select(parts, request.weights, checkpoint.path)
    stage = parts.vae if request.vae is None else vae_stage(read_checkpoint(request.vae))
    return Source(checkpoint, network, stage, request.weights)


def infer_architecture(source: Source, options: Options) -> Architecture:
    """Settle the architecture, and try its recorded defaults: settings that cannot be sampled are refused now."""
    evidence = Evidence(source.checkpoint.path, source.network, source.stage, source.checkpoint.metadata, options)
    architecture = infer(evidence)
    defaults = {key: value for key, value in architecture.defaults.items() if key != "guidance"}
    try:
        build_step_table(
            Schedule(architecture.beta_1, architecture.beta_T, architecture.T),
            formulation=architecture.formulation,
            variance=architecture.variance,
            **defaults,
        )
    except ArgumentError as error:
        raise CheckpointError(
            f"{source.checkpoint.path}: found default sampling settings that cannot be used ({error}); write the checkpoint "
            "again with defaults that can"
        ) from error
    return architecture


def load(source: Source, architecture: Architecture) -> tuple[UNet, VAE | None]:
    """Both networks in float32, evaluation mode; no more than the chosen weights is ever in memory."""
    with torch.device("meta"):
        unet = UNet(architecture.unet)
        vae = VAE(architecture.vae) if architecture.vae is not None else None
    network, stage = source.network, source.stage
    unet.load_state_dict(from_checkpoint(unet, as_float32(network.unet, network.path, network.prefix)), assign=True)
    if vae is not None:
        assert stage is not None, "a conditional network was inferred with its VAE"
        vae.load_state_dict(as_float32(stage.tensors, stage.checkpoint.path, stage.prefix), assign=True)
        vae.eval().requires_grad_(False)
    return unet.eval().requires_grad_(False), vae


def manifest_of(
    architecture: Architecture,
    source: Source,
    graphs: Sequence[Graph],
    backends: Sequence[str],
    row_width: int,
    engines: Sequence[BuiltEngine] = (),
) -> dict[str, Any]:
    """The manifest of the bundle, without the sizes and hashes that writing fills in."""
    vae = architecture.vae
    other = source.stage.checkpoint if source.stage and source.stage.checkpoint is not source.checkpoint and vae else None
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": architecture.name,
        "family": "diffusevae",
        "model": {
            "formulation": architecture.formulation,
            "image_size": architecture.unet.image_size,
            "channels": architecture.unet.out_channels,
            "z_dim": vae.z_dim if vae else None,
            "z_conditioned": architecture.unet.z_dim is not None,
            "row_width": row_width,
            "unet": dataclasses.asdict(architecture.unet),
            "vae": dataclasses.asdict(vae) if vae else None,
        },
        "schedule": {
            "recipe": "linear",
            "beta_1": architecture.beta_1,
            "beta_T": architecture.beta_T,
            "T": architecture.T,
        },
        "variance": architecture.variance,
        "defaults": dict(architecture.defaults),
        "source": {
            "file": source.checkpoint.path.name,
            "sha256": source.checkpoint.sha256,
            "weights": source.weights,
            "vae_file": other.path.name if other else None,
            "vae_sha256": other.sha256 if other else None,
        },
        "backends": list(backends),
        "graphs": {graph.key: _graph_entry(graph) for graph in graphs},
        "latent_prior": None,
        "engines": [engine.entry for engine in engines],
        "built_with": _versions(),
    }


def _graph_entry(graph: Graph) -> dict[str, Any]:
    return {
        "file": graph.file,
        "precision": graph.role.precision,
        "opset": OPSET,
        "inputs": [tensor.as_manifest() for tensor in graph.role.inputs],
        "outputs": [tensor.as_manifest() for tensor in graph.role.outputs],
        "parity": {
            "reference": f"torch {torch.__version__} float32",
            "max_relative_error": max(graph.parity.values()),
            "batches": list(SAMPLER_BATCHES if graph.role.name == SAMPLER else BATCHES),
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
