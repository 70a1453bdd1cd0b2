"""How long does an image take, beside the same network in other hands? All contestants alternate in one run.

    python benchmarks/latency.py --preset cifar10 --batch 1 --batch 16

The network has the size of a published configuration and random weights, which take as long as trained ones. Timed are
whole runs, from z to uint8 pixels, and the network calls inside them; before that all outputs are compared.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks import duel, plots
from benchmarks.contestants import CONTESTANTS, Contestant, Task, skip_reason
from benchmarks.machine import BenchmarkError, describe, machine_facts, now, versions, write_json
from engine.backends import available
from engine.bundle import Bundle
from engine.errors import BundleError, EngineError
from engine.processor import this_processor
from engine.threads import resolve_threads

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "torch eager f32"  # what the reference implementation does; ratios are against it where it was timed
BUILDERS = ("torch", "onnx", "diffusevae-engine")  # a bundle built with another version of these is built anew
MAKE_CHECKPOINT = (
    "import sys, torch; from export.synthetic import random_checkpoint; "
    "torch.save(random_checkpoint(sys.argv[1], online=False), sys.argv[2])"
)


# --- The bundle -------------------------------------------------------------------------------------------------------


def preset_bundle(preset: str, folder: Path) -> tuple[Path, Path]:
    """The bundle and checkpoint of a published configuration with random weights, built unless they are there already.

    Torch runs in processes of its own, so that this one stays small and none of torch's threads are alive while others
    are timed.
    """
    folder = folder.resolve()  # the processes below run in the project's root, wherever this one was started
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = folder / f"{preset}-random.ckpt", folder / f"{preset}-random.bundle"
    if not checkpoint.exists():
        click.echo(f"making random weights of {preset}: {checkpoint}")
        part = checkpoint.with_suffix(".part")
        _run([sys.executable, "-c", MAKE_CHECKPOINT, preset, str(part)])
        part.replace(checkpoint)
    if not is_current(bundle, checkpoint):
        click.echo(f"building {bundle}")
        _run(
            [
                sys.executable,
                "export/build_engines.py",
                str(checkpoint),
                "--out",
                str(bundle),
                "--preset",
                preset,
            ]
        )
    return bundle, checkpoint


def is_current(bundle: Path, checkpoint: Path) -> bool:
    """Whether a bundle is whole and was built from this very checkpoint by the versions that are installed."""
    if not bundle.exists():
        return False
    try:
        manifest = Bundle.open(bundle).manifest
    except BundleError as error:
        click.echo(f"building anew: {error}")
        return False
    here = versions()
    same = manifest.source.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return same and all(manifest.built_with.get(name) == here[name] for name in BUILDERS if name in here)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise BenchmarkError(
            f"found exit code {done.returncode} (its message is above), expected a bundle to time; "
            f"install what building needs with: pip install 'diffusevae-engine[benchmark]'"
        )


# --- The result -------------------------------------------------------------------------------------------------------


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p90, p99 (interpolated) and the count of what was timed."""
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    figures = {"mean": float(np.mean(values)), "p50": float(p50), "p90": float(p90), "p99": float(p99)}
    return {**{key: round(value, 4) for key, value in figures.items()}, "n": len(values)}


def row_of(contestant: Contestant, batch: int, record: duel.Record) -> dict[str, Any]:
    """One line of the result."""
    total, step = percentiles(record.totals), percentiles(record.calls)
    return {
        "contestant": contestant.name,
        "batch": batch,
        "total_ms": total,
        "step_ms": step,
        "images_per_second": round(1e3 * batch / total["p50"], 2),
        "rest": rest_of(record, step["p50"]) if contestant.kind == "engine" else None,
        "load_ms": round(record.load_ms, 1),
        "first_sample_ms": round(record.first_sample_ms, 2),
        "peak_rss_mb": record.peak_rss_mb,
    }


def rest_of(record: duel.Record, step_ms: float) -> dict[str, float]:
    """What is not a neural network, for each step, in percent of a step; medians over the runs.

    A run's total without the denoiser, the VAE's decoder and the timestep table: noise, update, rounding to pixels, and
    all Python around them. Beside it the update alone, and everything but the denoiser.
    """
    steps = len(record.calls) / len(record.totals)

    def percent(milliseconds: list[float]) -> float:
        return round(100 * float(np.median(milliseconds)) / steps / step_ms, 3)

    runs = record.stages
    return {
        "percent_of_step": percent([r["total"] - r["network"] - r["vae"] - r["table"] for r in runs]),
        "update_percent": percent([r["update"] for r in runs]),
        "all_but_denoiser_percent": percent([r["total"] - r["network"] for r in runs]),
    }


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times faster each is than the reference at the same batch, in medians; None where that was not timed."""
    medians = {(row["contestant"], row["batch"]): row for row in rows}
    for row in rows:
        base = medians.get((REFERENCE, row["batch"]))
        row["speedup"] = round(base["total_ms"]["p50"] / row["total_ms"]["p50"], 3) if base else None
        row["step_speedup"] = round(base["step_ms"]["p50"] / row["step_ms"]["p50"], 3) if base else None


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    names = (
        "contestant",
        "batch",
        "step p50",
        "p90",
        "p99",
        "end-to-end",
        "img/s",
        "faster",
        "rest",
        "load",
        "first",
        "RSS MB",
    )
    widths = (-18, 5, 9, 8, 8, 11, 8, 7, 7, 8, 8, 7)
    lines = [" ".join(f"{name:{'<' if width < 0 else '>'}{abs(width)}}" for name, width in zip(names, widths, strict=True))]
    for row in result["results"]:
        step, total = row["step_ms"], row["total_ms"]
        faster = f"{row['speedup']:.2f}x" if row["speedup"] else "-"
        rest = f"{row['rest']['percent_of_step']:.2f} %" if row["rest"] else "-"
        lines.append(
            f"{row['contestant']:<18} {row['batch']:>5} {step['p50']:>9.2f} {step['p90']:>8.2f} {step['p99']:>8.2f} "
            f"{total['p50']:>11.1f} {row['images_per_second']:>8.2f} {faster:>7} {rest:>7} {row['load_ms']:>8.0f} "
            f"{row['first_sample_ms']:>8.0f} {row['peak_rss_mb']:>7.0f}"
        )
    lines += [f"{c['name']:<18} skipped: {c['reason']}" for c in result["contestants"] if c["status"] == "skipped"]
    lines.append(
        f"milliseconds; {result['steps']} steps; faster = end to end against {REFERENCE}, same batch; "
        f"rest = everything but the networks, in % of a step"
    )
    return "\n".join(lines)


def field(task: Task, skip: Sequence[str]) -> tuple[list[Contestant], list[dict[str, Any]]]:
    """Who takes part on this machine, and everybody's entry in the result."""
    fit, entries = [], []
    for contestant in CONTESTANTS:
        reason = skip_reason(contestant, task, this_processor(), available())
        reason = "left out with --skip" if contestant.name in skip else reason
        fit += [contestant] if reason is None else []
        entry = {"name": contestant.name, "backend": contestant.backend, "precision": contestant.precision}
        entries.append({**entry, "status": "timed" if reason is None else "skipped", "reason": reason})
    if not fit:
        raise BenchmarkError(f"found no contestant that can run here: {json.dumps(entries)}; install onnxruntime")
    return fit, entries


def measure(task: Task, batches: Sequence[int], plan: duel.Plan, skip: Sequence[str], say: duel.Say) -> dict[str, Any]:
    """Everything: compare and time all contestants at each batch size."""
    fit, entries = field(task, skip)
    manifest = Bundle.open(task.bundle).manifest
    result: dict[str, Any] = {
        "format": "diffusevae-latency",
        "format_version": 1,
        "date": now(),
        "machine": machine_facts(),
        "model": {
            "name": manifest.name,
            "bundle_source_sha256": manifest.source.sha256,
            "image_size": manifest.model.image_size,
        },
        "steps": task.steps,
        "threads": task.threads,
        "protocol": {
            "rounds": plan.rounds,
            "most_runs_a_turn": plan.repeats,
            "seconds_a_turn": plan.seconds,
            "warmup": "one whole run after loading and one for the comparison, then one step at the start of each turn",
            "process": "one for each contestant; the others sleep during a turn",
        },
        "contestants": entries,
        "agreement": [],
        "results": [],
    }
    for batch in batches:
        records, rows = duel.compete(fit, task, manifest.model, manifest.schedule.T, batch, plan, say)
        result["agreement"] += rows
        result["results"] += [row_of(contestant, batch, records[contestant.name]) for contestant in fit]
    add_ratios(result["results"])
    return result


@click.command(context_settings={"show_default": True})
@click.option("--preset", default="cifar10", help="A published configuration, with random weights.")
@click.option("--bundle", type=Path, default=None, help="A bundle to time instead.")
@click.option("--checkpoint", type=Path, default=None, help="What --bundle was built from, for the contestants in torch.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 16), help="Repeat for several.")
@click.option("--steps", type=click.IntRange(2), default=10)
@click.option("--threads", type=int, default=None, help="The same for all.  [default: what affinity and container allow]")
@click.option("--rounds", type=click.IntRange(1), default=6, help="Turns of each contestant.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Most runs in a turn.")
@click.option("--seconds", type=float, default=3.0, help="A turn starts no further run after so long.")
@click.option("--skip", multiple=True, type=click.Choice([c.name for c in CONTESTANTS]), help="Leave one out.")
@click.option("--out", type=Path, default=Path("out/latency.json"))
@click.option("--plot", type=Path, default=Path("out/latency.png"))
def main(
    preset: str, bundle: Path | None, checkpoint: Path | None, batches: tuple[int, ...], steps: int, threads: int | None,
    rounds: int, repeats: int, seconds: float, skip: tuple[str, ...], out: Path, plot: Path,
) -> None:  # fmt: skip
    """Time every contestant on the same network in alternating turns."""
    try:
        count = resolve_threads(threads)
        if bundle is None:
            bundle, checkpoint = preset_bundle(preset, out.parent)
        # What the weights cannot tell, the bundle knows: the contestants in torch read the checkpoint with it.
        manifest = Bundle.open(bundle).manifest
        options = {"heads": manifest.model.unet["heads"], "image_size": manifest.model.image_size}
        task = Task(bundle, checkpoint, options, steps, count)
        click.echo(describe(machine_facts()))
        result = measure(task, batches, duel.Plan(rounds, repeats, seconds), skip, click.echo)
        write_json(out, result)
        click.echo(table(result))
        plots.draw_latency(result, plot)
        click.echo(f"wrote {out} and {plot}")
    except EngineError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
