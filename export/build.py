"""How does a checkpoint become a bundle? Read, infer, then export and check each graph, then write; one function each."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import engine
from engine.backends import BACKENDS, available
from engine.bundle_writer import write_bundle
from engine.errors import ArgumentError, BackendError, CheckpointError, did_you_mean
from engine.manifest import MANIFEST_FILE
from engine.steps import Schedule, build_step_table
from export.architecture import Architecture, infer
from export.checkpoint import Checkpoint, as_float32, read_checkpoint
from export.evidence import Evidence, Options
from export.graphs.onnx_export import OPSET, export_onnx
from export.graphs.parity import BATCHES, measure
from export.graphs.roles import Role, TimestepTable, roles
from export.models.layouts import from_checkpoint
from export.models.unet import UNet
from export.models.vae import VAE
from export.parts import Network, Stage, select, split, vae_stage

ALWAYS = "onnxruntime"  # every graph is checked in it, whatever the bundle is built for
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Request:
    """What to build: the files, which weights, for which backends, and what the user said about the model."""

    checkpoint: Path
    vae: Path | None = None
    out: Path | None = None
    weights: str = "ema"
    backends: tuple[str, ...] = ("onnxruntime", "openvino")
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Source:
    """The files, read, and the networks in them that were chosen."""

    checkpoint: Checkpoint
    network: Network
    stage: Stage | None
    weights: str


@dataclass(frozen=True)
class Graph:
    """One exported graph: its ONNX bytes and the largest relative error of each runtime."""

    role: Role
    model: bytes
    parity: dict[str, float]


@dataclass(frozen=True)
class Built:
    """What a build made."""

    path: Path
    architecture: Architecture
    source: Source
    graphs: tuple[Graph, ...]


class Watch:
    """Told about the progress of a build; this one says nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around each stage."""
        yield

    def inferred(self, architecture: Architecture, source: Source) -> None:
        """Called once the model is known, before the long stages."""


def build(request: Request, watch: Watch | None = None) -> Built:
    """Build a bundle. Any EngineError leaves an older bundle at the same place untouched."""
    watch = watch or Watch()
    runtimes = check_backends(request.backends)
    if request.out is not None:
        check_out(request.out)
    with watch.stage("read"):
        source = read(request)
    with watch.stage("infer"):
        architecture = infer_architecture(source, request.options)
    watch.inferred(architecture, source)
    with watch.stage("load weights"):
        unet, vae = load(source, architecture)
    graphs = []
    wanted = roles(unet, vae, architecture.T)
    table = wanted["timestep_table"].module
    assert isinstance(table, TimestepTable)
    for role in wanted.values():
        with watch.stage(f"export {role.name}"):
            model = export_onnx(role)
        with watch.stage(f"check {role.name}"):
            graphs.append(Graph(role, model, measure(role, model, runtimes, table)))
    path = request.out or Path(f"{architecture.name}.bundle")
    with watch.stage("write"):
        manifest = manifest_of(architecture, source, graphs, request.backends, unet.row_width)
        write_bundle(path, manifest, {f"{graph.role.name}.onnx": graph.model for graph in graphs})
    return Built(path, architecture, source, tuple(graphs))


def check_out(path: Path) -> None:
    """Refuse a place that writing would refuse a minute later: a file, or a folder that holds no bundle."""
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / MANIFEST_FILE).exists()):
        raise ArgumentError(
            f"--out {path}: found {'a file' if path.is_file() else 'a folder that is no bundle'}, expected nothing, an "
            "empty folder or an older bundle; choose another --out"
        )


def check_backends(names: Sequence[str]) -> list[str]:
    """The runtimes to check graphs in; an unknown or missing backend is refused before any work is done."""
    for name in names:
        if name not in BACKENDS:
            raise ArgumentError(
                f"--backends: found {name!r}, expected one or more of {', '.join(BACKENDS)}.{did_you_mean(name, BACKENDS)}"
            )
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"--backends: found {list(names)}, expected different names of {', '.join(BACKENDS)}")
    installed = available()
    needed = list(dict.fromkeys((ALWAYS, *names)))
    for name in needed:
        if not installed[name][0]:
            raise BackendError(f"backend {name}: found that it is {installed[name][1]}")
    return needed


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
    architecture: Architecture, source: Source, graphs: Sequence[Graph], backends: Sequence[str], row_width: int
) -> dict[str, Any]:
    """The manifest of the bundle, without the sizes and hashes that writing fills in."""
    vae = architecture.vae
    other = source.stage.checkpoint if source.stage and source.stage.checkpoint is not source.checkpoint and vae else None
    return {
        "format": "diffusevae-bundle",
        "format_version": 1,
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
        "graphs": {graph.role.name: _graph_entry(graph) for graph in graphs},
        "built_with": _versions(),
    }


def _graph_entry(graph: Graph) -> dict[str, Any]:
    return {
        "file": f"{graph.role.name}.onnx",
        "precision": "f32",
        "opset": OPSET,
        "inputs": [tensor.as_manifest() for tensor in graph.role.inputs],
        "outputs": [tensor.as_manifest() for tensor in graph.role.outputs],
        "parity": {
            "reference": f"torch {torch.__version__} float32",
            "max_relative_error": max(graph.parity.values()),
            "batches": list(BATCHES),
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
