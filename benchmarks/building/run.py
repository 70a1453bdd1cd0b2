"""Every published model of latent and guided diffusion, built and sampled once with random weights: time, memory and sizes.

Building and sampling are processes of their own, as a user starts them. Random weights cost what trained ones cost.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import children
from benchmarks.building.measured import ROOT, measure
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from engine.bundle.reader import Bundle
from engine.bundle.tensors import TensorSpec
from engine.cli.options import NearChoice
from engine.cli.terminal import Program
from engine.places import check_file
from export.dates import now
from export.families.adm import published as adm
from export.families.latent import published as latent
from export.families.latent.weights import expected
from export.models.openai.unet import OpenAIUNet
from export.models.unset import Unset

MAKE_CHECKPOINT = (
    "import sys, torch; from export import synthetic; "
    "torch.save(getattr(synthetic, sys.argv[3])(sys.argv[1]), sys.argv[2])"
)
STEPS = 2
BACKENDS = ("onnxruntime", "openvino")


def parameters(name: str) -> dict[str, float]:
    """Millions of parameters of each network."""
    if name in adm.PUBLISHED:
        with torch.device("meta"), Unset():
            unet = OpenAIUNet(adm.PUBLISHED[name].unet)
        return {"unet": round(sum(tensor.numel() for tensor in unet.parameters()) / 1e6, 1)}
    parts = asdict(expected(latent.PUBLISHED[name].spec))
    return {part: round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 1) for part, shapes in parts.items()}


def models() -> list[str]:
    """The published models, smallest first; of those that differ in nothing the first."""
    known: list[dict[str, Any]] = [dict(latent.PUBLISHED), dict(adm.PUBLISHED)]
    first = {next(same for same in of if of[same] == config) for of in known for config in of.values()}
    return sorted(first, key=lambda name: (sum(parameters(name).values()), name))


def row(name: str, folder: Path) -> dict[str, Any]:
    """What one model costs; BenchmarkError where it does not build, or what it samples is not finite."""
    checkpoint, bundle, result = folder / f"{name}.ckpt", folder / f"{name}.bundle", folder / "cost.json"
    maker = "random_adm_checkpoint" if name in adm.PUBLISHED else "random_latent_checkpoint"
    made = children.run([sys.executable, "-c", MAKE_CHECKPOINT, name, str(checkpoint), maker], cwd=ROOT)
    if made.returncode != 0:
        raise BenchmarkError(f"{name}: found no checkpoint (the message is above), expected one; look at the free disk")
    build = ["build", str(checkpoint), "--out", str(bundle), "--preset", name, "--backends", *BACKENDS]
    found: dict[str, Any] = {"parameters_m": parameters(name), "checkpoint_bytes": checkpoint.stat().st_size}
    found["build"] = asdict(measure(build, result))
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    found["bundle_bytes"] = sum(spec.size for spec in manifest.files)
    found["graph_errors"] = {key: graph.parity.max_relative_error for key, graph in manifest.graphs.items()}
    given = []
    for spec in manifest.inputs:
        path = folder / f"{spec.name}.npy"
        np.save(path, example(spec))
        given += ["--input", f"{spec.name}={path}"]
    found["sample"] = {}
    for backend in BACKENDS:
        images = folder / f"{backend}.npy"
        sample = ["sample", str(bundle), "-n", "1", "--steps", str(STEPS), "--seed", "0", "--backend", backend, *given]
        found["sample"][backend] = asdict(measure([*sample, "--out", str(images)], result))
        if np.ptp(np.load(images)) == 0:  # what is not finite the command refuses itself
            raise BenchmarkError(f"{name} in {backend}: found an image of one colour, expected a picture; report it")
    return found


def example(spec: TensorSpec) -> np.ndarray:
    """One row of an input, random within its range."""
    rng, (low, high) = np.random.default_rng(0), spec.range or (0, 1)
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    if spec.dtype == "int64":
        return rng.integers(int(low), int(high) + 1, shape)
    return (low + (high - low) * rng.random(shape)).astype(np.float32)


def table(result: dict[str, Any]) -> str:
    """The result for people, as Markdown."""
    head = ("model", "parameters, M", "build", "processor", "peak memory", "bundle", "a run of 2 steps", "its peak", "error")
    rows = [head, ("---",) * len(head)]
    for found in result["models"]:
        build, sample = found["build"], found["sample"]["openvino"]
        rows.append(
            (
                found["model"], f"{sum(found['parameters_m'].values()):.0f}", f"{build['wall_s']:.0f} s",
                f"{build['cpu_s']:.0f} s", f"{build['peak_gib']:.1f} GiB", f"{found['bundle_bytes'] / 2**30:.2f} GiB",
                f"{sample['wall_s']:.0f} s", f"{sample['peak_gib']:.1f} GiB", f"{max(found['graph_errors'].values()):.1e}",
            )
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--model", "names", type=NearChoice(models()), multiple=True, help="Again for each.  [default: all]")
@click.option("--folder", type=Path, help="Where checkpoints and bundles lie meanwhile: 14 GB for the largest.")
@click.option("--out", type=Path, default=Path("out/building.json"))
@click.option("--resume", is_flag=True, help="Keep the models that --out has already.")
def main(names: tuple[str, ...], folder: Path | None, out: Path, resume: bool) -> None:
    """Build every published model of latent and guided diffusion with random weights, and sample from it."""
    check_file(out)
    facts = machine_facts()
    click.echo(describe(facts))
    done = {found["model"]: found for found in json.loads(out.read_text())["models"]} if resume and out.exists() else {}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    head = {"format": "diffusevae-building", "format_version": 1, "steps": STEPS}
    for name in names or models():
        if name in done:
            continue
        click.echo(f"\n{name}")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            found = row(name, Path(scratch))
        done[name] = {"model": name, "date": now(), "machine": facts, **found}  # others may come from another machine
        ordered = [done[known] for known in models() if known in done]
        write_json(out, {**head, "models": ordered})
    click.echo(table({"models": [done[known] for known in models() if known in done]}))
    click.echo(f"wrote {out}")
