"""What is timed? Bundles of the published configurations with random weights, and of the trained avatars, built on demand.

Torch runs in processes of its own, so that the benchmark stays small and none of torch's threads live while others
are timed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks import children
from benchmarks.latency.field import ALL_INT8, Task
from benchmarks.machine import BenchmarkError, versions
from engine.backends import available
from engine.backends.native import backend as native
from engine.bundle.reader import Bundle
from engine.errors import BundleError

ROOT = Path(__file__).resolve().parents[2]
AVATARS = "avatars"
PRESETS = (AVATARS, "cifar10", "celeba64", "celebamaskhq128")
BUILDERS = ("torch", "onnx", "diffusevae-engine")  # a bundle built with another version of these is built anew
MAKE_CHECKPOINT = (
    "import sys, torch; from export.synthetic import random_checkpoint; "
    "torch.save(random_checkpoint(sys.argv[1], online=False), sys.argv[2])"
)


def task_of(preset: str, folder: Path, steps: int, threads: int) -> Task:
    """Everything that the contestants need for a configuration, built unless it is there already."""
    folder = folder.resolve()  # the processes below run in the project's root, wherever this one was started
    folder.mkdir(parents=True, exist_ok=True)
    if preset == AVATARS:
        checkpoint = ROOT / "examples" / "avatars" / "avatars.ckpt"
        how = ["--latent-prior", str(checkpoint.with_name("latent_prior.safetensors"))]
    else:
        checkpoint, how = folder / f"{preset}-random.ckpt", ["--preset", preset]
        _random_checkpoint(preset, checkpoint)
    stem = checkpoint.stem
    has_native = available()[native.NAME][0]
    backends = ["onnxruntime", "openvino", *([native.NAME] if has_native else [])]
    precisions = ["f32", *(native.PRECISIONS if has_native else [])]
    bundle = _bundle(folder / f"{stem}.bundle", checkpoint, [*how, "--backends", *backends, "--precision", *precisions])
    variants = {}
    if has_native:
        every = [*how, "--backends", "onnxruntime", "native", "--precision", "f32", "int8", "--int8-budget", "all"]
        variants[ALL_INT8] = _bundle(folder / f"{stem}-{ALL_INT8}.bundle", checkpoint, every)
    return task_from(bundle, checkpoint, steps, threads, folder, variants)


def task_from(
    bundle: Path, checkpoint: Path | None, steps: int, threads: int, folder: Path, variants: dict[str, Path] | None = None
) -> Task:
    """The task of a bundle that exists; with its checkpoint the contestants in torch and the plain exports take part."""
    # What the weights cannot tell, the bundle knows: the contestants in torch read the checkpoint with it.
    manifest = Bundle.open(bundle).manifest
    options = {"heads": manifest.model.unet["heads"], "image_size": manifest.model.image_size}
    plain = None if checkpoint is None else _plain(checkpoint, options, folder.resolve(), manifest.source.sha256)
    return Task(bundle, checkpoint, options, steps, threads, plain, variants or {})


def is_current(bundle: Path, checkpoint: Path, backends: Sequence[str], precisions: Sequence[str] = ()) -> bool:
    """Whether a bundle is whole, for these backends and precisions, and built from this checkpoint by what is installed."""
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
    wanted = set(precisions) & set(native.PRECISIONS) if native.NAME in backends else set()
    whole = all(opened.has_engine(native.NAME, precision, "denoiser") for precision in wanted)
    return same and built and whole and set(backends) <= set(manifest.backends)


def _random_checkpoint(preset: str, checkpoint: Path) -> None:
    if not checkpoint.exists():
        click.echo(f"making random weights of {preset}: {checkpoint}")
        part = checkpoint.with_suffix(".part")
        _run([sys.executable, "-c", MAKE_CHECKPOINT, preset, str(part)])
        part.replace(checkpoint)


def _bundle(bundle: Path, checkpoint: Path, options: list[str]) -> Path:
    start, end = options.index("--backends") + 1, options.index("--precision")
    precisions = [word for word in options[end + 1 :] if not word.startswith("--")]
    if not is_current(bundle, checkpoint, options[start:end], precisions):
        click.echo(f"building {bundle}")
        _run([sys.executable, "export/build_engines.py", str(checkpoint), "--out", str(bundle), *options])
    return bundle


def _plain(checkpoint: Path, options: dict[str, object], folder: Path, sha256: str) -> Path:
    path = folder / f"{checkpoint.stem}-plain-{sha256[:12]}.onnx"
    if not path.exists():
        click.echo(f"exporting {path}")
        _run(
            [
                sys.executable, "benchmarks/latency/plain.py", str(checkpoint.resolve()), "--options", json.dumps(options),
                "--out", str(path),
            ]
        )  # fmt: skip
    return path


def _run(command: Sequence[str]) -> None:
    done = children.run(command, cwd=ROOT)
    if done.returncode != 0:
        raise BenchmarkError(
            f"found exit code {done.returncode} (its message is above), expected a bundle to time; "
            f"install what building needs with: pip install 'diffusevae-engine[benchmark]'"
        )
