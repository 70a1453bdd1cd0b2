"""The quality of pictures for the milliseconds they take, and the few-step setting that a bundle should record.

    python benchmarks/quality --bundle out/avatars.bundle --baseline out/avatars-baseline.bundle

Compared: the VAE alone, unconditional DDIM, DiffuseVAE from noise, and DiffuseVAE started from the reconstruction at several
timesteps. Every setting uses the same seeds and the same number of images, since the distance depends on that number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import BenchmarkError, describe, machine_facts, now, write_json
from benchmarks.quality import cases, faces, plots, study
from benchmarks.quality.cases import Case
from engine import Sampler
from engine.cli.terminal import Program
from engine.places import check_file
from export.fitting import features

PICTURED = 12  # seeds in the picture


def header(
    facts: dict[str, Any], sampler: Sampler, baseline: Sampler | None, heldout: Path, images: study.U8, samples: int
) -> dict[str, Any]:
    """Everything in the result that is not measured; `inputs` decides whether older rows may be kept."""
    return {
        "format": "diffusevae-quality",
        "format_version": 2,
        "complete": False,
        "date": now(),
        "machine": facts,
        "engine": {"backend": sampler.backend, "precision": sampler.precision, "threads": sampler.threads},
        "metric": {"name": study.METRIC, "features": study.NETWORK.width, "image_side": features.SIZE},
        "inputs": {
            "bundle": study.identity(sampler),
            "baseline": study.identity(baseline) if baseline is not None else None,
            "heldout": {"images": len(images), "sha256": hashlib.sha256(images.tobytes()).hexdigest()},
            "samples": samples,
            "first_seed": study.FIRST_SEED,
        },
        "heldout_file": heldout.name,
        "floors": [],
        "settings": [],
        "recommended": None,
        "recommended_key": None,
    }


def earlier_rows(out: Path, fresh: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an interrupted run over the same inputs; none where the file belongs to other inputs."""
    if not out.exists():
        return []
    try:
        old = json.loads(out.read_text(encoding="utf-8"))
        same = all(old[key] == fresh[key] for key in ("inputs", "metric"))
        rows: list[dict[str, Any]] = old["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{out}: found no result that can be resumed ({error!r}), expected one; leave out --resume to start over"
        ) from error
    if not same:
        click.echo(f"{out} was measured on other bundles, images or sample counts: starting over")
    return rows if same else []


def run(subject: study.Study, wanted: Sequence[Case], samples: int, result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Measure every case that has no row yet, writing the result after each; returns the finished result."""
    done = {row["key"] for row in result["settings"]}
    for index, case in enumerate(wanted):
        if case.key in done or not subject.has(case):
            continue
        with study.progress(samples, f"[{index + 1}/{len(wanted)}] {case.key}") as tick:
            result["settings"].append(subject.measure(case, samples, tick))
        settle(result)
        write_json(out, result)
        row = result["settings"][-1]
        click.echo(f"  {case.key:<44} {row['fd']:9.2f} FD {row['ms_per_image']:8.2f} ms")
    result["complete"] = True
    write_json(out, settle(result))
    return result


def settle(result: dict[str, Any]) -> dict[str, Any]:
    """Put the best few-step setting so far into the result."""
    best = cases.recommend(result["settings"])
    result["recommended"] = best["setting"] if best else None
    result["recommended_key"] = best["key"] if best else None
    return result


def table(result: dict[str, Any]) -> str:
    """The result as text: one line a setting, the recommended one marked."""
    metric, samples = result["metric"]["name"], result["inputs"]["samples"]
    images = result["inputs"]["heldout"]["images"]
    lines = [
        f"{metric}: {samples} samples a setting against {images} held-out renders; lower is better",
        f"{'setting':<46} {'calls':>5} {'FD':>9} {'ms/image':>9}",
    ]
    for row in result["settings"]:
        mark = "  <- best few-step setting" if row["key"] == result["recommended_key"] else ""
        lines.append(f"{row['key']:<46} {row['network_calls']:>5} {row['fd']:>9.2f} {row['ms_per_image']:>9.2f}{mark}")
    for row in result["floors"]:
        lines.append(f"floor, {row['between']} ({row['counts'][0]} and {row['counts'][1]}): {row['fd']:.2f}")
    if result["recommended"] is not None:
        lines.append(f"recommended: {json.dumps(result['recommended'])}")
    return "\n".join(lines)


def sample_rows(subject: study.Study, result: dict[str, Any]) -> list[tuple[str, study.U8]]:
    """The rows of the picture: the same seeds through the VAE, 10 steps from noise, the best few-step setting, 50 steps."""
    seeds = study.seeds_of(0, PICTURED)
    shown = [Case(cases.VAE, 0), Case(cases.NOISE, 10)]
    if result["recommended"] is not None:
        chosen = {key: result["recommended"][key] for key in ("steps", "spacing", "t_start", "guidance", "eta")}
        shown.append(Case(cases.RECON if chosen["t_start"] is not None else cases.NOISE, **chosen))
    shown.append(Case(cases.NOISE, 50))
    if subject.baseline is not None:
        shown.append(Case(cases.BASELINE, 10))
    return [(label_of(case), subject.images(case, seeds)) for case in shown]


def label_of(case: Case) -> str:
    """A case as a caption of two lines."""
    if case.curve == cases.VAE:
        return "VAE alone\nno refinement"
    start = "from noise" if case.t_start is None else f"from VAE image, t = {case.t_start}"
    head = "unconditional" if case.curve == cases.BASELINE else f"{case.steps} steps"
    return f"{head}\n{f'{case.steps} steps' if case.curve == cases.BASELINE else start}"


def estimate(subject: study.Study, wanted: Sequence[Case], samples: int) -> str:
    """How long the whole run will take: network calls, which are nearly all of it."""
    calls = sum(case.network_calls for case in wanted if subject.has(case))
    seconds = subject.seconds_per_call()
    return (
        f"{len(wanted)} settings, {calls} network calls a sample at {1e3 * seconds:.2f} ms: about "
        f"{calls * samples * seconds / 60:.0f} minutes for {samples} samples, and the features"
    )


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", type=Path, default=Path("out/avatars.bundle"), help="The DiffuseVAE.")
@click.option("--baseline", type=Path, default=None, help="An unconditional model of the same size.")
@click.option("--heldout", type=Path, default=Path("data/heldout.npz"), help="Held-out images; rendered where missing.")
@click.option("--train", type=Path, default=None, help="For the floor at equal counts.  [default: beside --heldout]")
@click.option("--samples", type=click.IntRange(2), default=2000, help="Images a setting.")
@click.option("--quick", is_flag=True, help="A few settings only.")
@click.option("--resume", is_flag=True, help="Keep the rows that --out has from the same inputs.")
@click.option("--backend", default="auto", help="As for Sampler.")
@click.option("--precision", default="auto", help="As for Sampler.")
@click.option("--threads", type=int, default=None, help="Default: what affinity and container allow.")
@click.option("--out", type=Path, default=Path("out/quality.json"))
@click.option("--plot", type=Path, default=Path("out/quality.png"))
@click.option("--picture", type=Path, default=Path("out/quality-samples.png"))
def main(
    bundle: Path, baseline: Path | None, heldout: Path, train: Path | None, samples: int, quick: bool, resume: bool,
    backend: str, precision: str, threads: int | None, out: Path, plot: Path, picture: Path,
) -> None:  # fmt: skip
    """Measure quality against time for every way to sample, and find the best few-step setting."""
    for place in (out, plot, picture):
        check_file(place)
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    heldout = faces.held_out(heldout, out.parent)
    images = faces.load_faces(heldout)
    beside = train or heldout.with_name("train.npz")
    trained = faces.load_faces(beside) if train is not None or beside.exists() else None
    sampler = Sampler(bundle, backend, precision, threads)
    other = Sampler(baseline, backend, precision, threads) if baseline is not None else None
    result = header(facts, sampler, other, heldout, images, samples)
    result["settings"] = earlier_rows(out, result) if resume else []
    extractor = study.open_extractor(sampler.threads)
    with study.progress(len(images) + (samples if trained is not None else 0), "held-out images") as tick:
        reference, result["floors"] = study.floors(images, trained, samples, extractor, tick)
    subject = study.Study(sampler, other, extractor, reference)
    wanted = cases.quick() if quick else cases.full()
    click.echo(estimate(subject, wanted, samples))
    run(subject, wanted, samples, result, out)
    click.echo(table(result))
    plots.draw_quality(result, plot)
    plots.draw_rows(sample_rows(subject, result), picture)
    click.echo(f"wrote {out}, {plot} and {picture}")
