"""The bundles that are timed: published configurations with random weights, and the trained avatars, built on demand.

Only what the contestants that run need is built. Torch runs in processes of its own, so that the benchmark stays small and
none of torch's threads live while others are timed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import children
from benchmarks.latency import reference
from benchmarks.latency.field import ALL_INT8, Contestant, Task
from benchmarks.latency.networks import NETWORKS, Network
from benchmarks.machine import BenchmarkError, versions
from engine.backends import available
from engine.backends.native.backend import Native
from engine.bundle.reader import Bundle
from engine.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]
NATIVE, ORT, OPENVINO = Native.NAME, "onnxruntime", "openvino"
AVATARS = "avatars"
PRESETS = (AVATARS, "cifar10", "celeba64", "celebamaskhq128")
BUILDERS = ("torch", "onnx", "diffusevae-engine")  # a bundle built with another version of these is built anew
MAKE_CHECKPOINT = (
    "import sys, torch; from export.synthetic import random_checkpoint; "
    "torch.save(random_checkpoint(sys.argv[1], online=False), sys.argv[2])"
)


@dataclass(frozen=True)
class Needs:
    """What a bundle must hold: backends, and the precisions that backend native's engines are built in."""

    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    more: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """The same for `build_engines.py`."""
        return ["--backends", *self.backends, "--precision", "f32", *self.precisions, *self.more]


def needs_of(contestants: Sequence[Contestant], variant: str | None) -> Needs | None:
    """What the contestants on this bundle need on this machine; None for a variant that none of them samples from."""
    here = available()
    found = [c for c in contestants if c.kind == "engine" and c.variant == variant and here[c.backend][0]]
    if variant is not None and not found:
        return None
    # Every bundle is checked with ONNX Runtime, and the plain exports take its decoder.
    backends = (ORT, *(name for name in (OPENVINO, NATIVE) if any(c.backend == name for c in found)))
    precisions = tuple(p for p in Native.PRECISIONS if any(c.backend == NATIVE and c.precision == p for c in found))
    return Needs(backends, precisions, ("--int8-budget", "all") if variant == ALL_INT8 else ())


def task_of(preset: str, folder: Path, steps: int, threads: int, contestants: Sequence[Contestant]) -> Task:
    """Everything that these contestants need for a configuration, built unless it is there already."""
    folder = folder.resolve()  # the processes below run in the project's root, wherever this one was started
    folder.mkdir(parents=True, exist_ok=True)
    if preset in NETWORKS:
        return _network_task(preset, folder / preset, steps, threads)
    if preset == AVATARS:
        checkpoint = ROOT / "examples" / "avatars" / "avatars.ckpt"
        how = ["--latent-prior", str(checkpoint.with_name("latent_prior.safetensors"))]
    else:
        checkpoint, how = folder / f"{preset}-random.ckpt", ["--preset", preset]
        _random_checkpoint(preset, checkpoint)
    made = {}
    for variant, name in ((None, checkpoint.stem), (ALL_INT8, f"{checkpoint.stem}-{ALL_INT8}")):
        needs = needs_of(contestants, variant)
        if needs is not None:
            made[variant] = _bundle(folder / f"{name}.bundle", checkpoint, needs, how)
    variants = {variant: path for variant, path in made.items() if variant is not None}
    return task_from(made[None], checkpoint, steps, threads, folder, contestants, variants)


def _network_task(preset: str, folder: Path, steps: int, threads: int) -> Task:
    if not Network(folder).is_whole:
        click.echo(f"making {folder}")
        _run([sys.executable, "benchmarks/latency/networks.py", preset, "--out", str(folder)])
    return Task(folder, None, {}, steps, threads, network=folder)


def task_from(
    bundle: Path,
    checkpoint: Path | None,
    steps: int,
    threads: int,
    folder: Path,
    contestants: Sequence[Contestant],
    variants: dict[str, Path] | None = None,
) -> Task:
    """The task of a bundle that exists; with its checkpoint the contestants in torch and the plain exports take part."""
    plain, options = None, {}
    if checkpoint is not None:
        manifest = Bundle.open(bundle).manifest
        options = reference.options_of(manifest)
        if any(contestant.kind == "plain" for contestant in contestants):
            plain = _plain(checkpoint, options, folder.resolve(), manifest.source.sha256)
    return Task(bundle, checkpoint, options, steps, threads, plain, variants or {})


def is_current(bundle: Path, checkpoint: Path, needs: Needs) -> bool:
    """Whether a bundle is whole, holds what is needed, and was built from this checkpoint by what is installed."""
    if not bundle.exists():
        return False
    try:
        opened = Bundle.open(bundle)
    except BundleError as error:
        click.echo(f"building anew: {error}")
        return False
    here, manifest = versions(), opened.manifest
    same = manifest.source.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    built = all(manifest.built_with.get(name) == here[name] for name in BUILDERS if name in here)
    # make demo leaves a bundle of this name that has not every precision
    whole = all(opened.has_engine(NATIVE, precision, manifest.pipeline.step.graph) for precision in needs.precisions)
    return same and built and whole and set(needs.backends) <= set(manifest.backends)


def _random_checkpoint(preset: str, checkpoint: Path) -> None:
    if not checkpoint.exists():
        click.echo(f"making random weights of {preset}: {checkpoint}")
        part = checkpoint.with_suffix(".part")
        _run([sys.executable, "-c", MAKE_CHECKPOINT, preset, str(part)])
        part.replace(checkpoint)


def _bundle(bundle: Path, checkpoint: Path, needs: Needs, how: Sequence[str]) -> Path:
    if not is_current(bundle, checkpoint, needs):
        click.echo(f"building {bundle}")
        command = [sys.executable, "export/build_engines.py", str(checkpoint), "--out", str(bundle)]
        _run([*command, *how, *needs.options])
    return bundle


def _plain(checkpoint: Path, options: dict[str, object], folder: Path, sha256: str) -> Path:
    path = folder / f"{checkpoint.stem}-plain-{sha256[:12]}.onnx"
    if not path.exists():
        click.echo(f"exporting {path}")
        command = [sys.executable, "benchmarks/latency/plain.py", str(checkpoint.resolve())]
        _run([*command, "--options", json.dumps(options), "--out", str(path)])
    return path


def _run(command: Sequence[str]) -> None:
    done = children.run(command, cwd=ROOT)
    if done.returncode != 0:
        raise BenchmarkError(
            f"found exit code {done.returncode} (its message is above), expected a bundle to time; "
            f"install what building needs with: pip install 'diffusevae-engine[benchmark]'"
        )
