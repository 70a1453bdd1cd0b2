"""The quality of pictures for the milliseconds they take.

    python benchmarks/quality --bundle out/avatars.bundle --baseline out/avatars-baseline.bundle

Compared: the VAE alone, an unconditional model and DiffuseVAE, from noise and from the reconstruction, with plain settings,
with those fitted to the bundles, and with diffusers' schedulers. Every row uses the same seeds and the same number of
images, since the scores depend on that number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from benchmarks.quality import cases, faces, judge, plots, study
from benchmarks.quality.cases import Case
from engine import Sampler
from engine.cli.terminal import Program
from engine.places import check_file
from export.dates import now
from export.fitting import features, neighbours, objective

PICTURED = 12  # seeds in the picture


def header(
    facts: dict[str, Any], sampler: Sampler, others: dict[str, Sampler | None], heldout: Path, images: judge.U8, samples: int
) -> dict[str, Any]:
    """Everything in the result that is not measured; `inputs` decides whether older rows may be kept."""
    return {
        "format": "diffusevae-quality",
        "format_version": 3,
        "complete": False,
        "date": now(),
        "machine": facts,
        "engine": {"backend": sampler.backend, "precision": sampler.precision, "threads": sampler.threads},
        "metric": {
            "fd": judge.METRIC, "fd_second": judge.SECOND_METRIC, "image_side": features.SIZE,
            "neighbours": neighbours.K, "colour_grid": objective.GRID,
        },
        "inputs": {
            "bundle": study.identity(sampler),
            **{name: study.identity(other) if other is not None else None for name, other in others.items()},
            "heldout": {"images": len(images), "sha256": hashlib.sha256(images.tobytes()).hexdigest()},
            "samples": samples,
            "first_seed": study.FIRST_SEED,
        },
        "heldout_file": heldout.name,
        "floor": None,
        "settings": [],
        "left_out": {},
    }  # fmt: skip


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
        if case.key in done:
            continue
        if reason := subject.missing(case):
            result["left_out"].setdefault(reason, []).append(case.key)
            continue
        with study.progress(3 * samples, f"[{index + 1}/{len(wanted)}] {case.key}") as tick:
            result["settings"].append(subject.measure(case, samples, tick))
        write_json(out, result)
        click.echo(line(result["settings"][-1]))
    result["complete"] = True
    write_json(out, result)
    return result


COLUMNS = {
    "fd": "9.2f", "fd_second": "9.2f", "colour": "7.3f", "precision": "9.3f", "recall": "7.3f", "ms_per_image": "12.2f",
}  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    columns = (f" {row[name]:>{form}}" if name in row else "" for name, form in COLUMNS.items())
    return f"{row['key']:<56} {row['network_calls']:>5}" + "".join(columns)


def table(result: dict[str, Any]) -> str:
    """The result as text: what the columns are, and one line a setting."""
    metric, inputs = result["metric"], result["inputs"]
    heads = (f" {name:>{form.split('.')[0]}}" for name, form in COLUMNS.items())
    lines = [
        f"{inputs['samples']} samples a setting against {inputs['heldout']['images']} held-out images",
        f"fd: {metric['fd']}, on which settings are fitted; fd_second: {metric['fd_second']}, which has no part in that",
        f"colour: the same of {metric['colour_grid']}x{metric['colour_grid']} block means; lower is better in all three",
        "precision: the share of samples among the real images; recall: of real images among the samples",
        "ms_per_image: batch 1, seed to pixels; beside a scheduler of diffusers the engine's own chain of as many calls",
        f"{'setting':<56} calls" + "".join(heads),
    ]
    lines += [line(row) for row in result["settings"]]
    if result["floor"] is not None:
        lines.append(line({"key": "floor: as many training images", "network_calls": 0, **result["floor"]}))
    lines += [f"left out ({len(keys)}): {reason}" for reason, keys in result["left_out"].items()]
    return "\n".join(lines)


def sample_rows(subject: study.Study) -> list[tuple[str, judge.U8]]:
    """The rows of the picture: the same seeds through the VAE and each way to sample, fitted where there is a setting."""
    seeds = study.seeds_of(0, PICTURED)
    shown = [Case(cases.VAE, 0)]
    for curve, steps in ((cases.RECON, 3), (cases.RECON, 10), (cases.NOISE, 10), (cases.BASELINE, 10)):
        both = (cases.fitted(curve, steps), cases.plain(curve, steps))
        shown += [case for case in both if subject.missing(case) is None][:1]
    return [(label_of(case), subject.run(case, seeds).images) for case in shown]


def label_of(case: Case) -> str:
    """A case as a caption of two lines."""
    if case.curve == cases.VAE:
        return "VAE alone\nno refinement"
    return f"{case.curve.removeprefix('DiffuseVAE ')}\n{case.steps} steps, {'fitted' if case.fitted else 'plain'}"


def estimate(subject: study.Study, wanted: Sequence[Case], samples: int) -> str:
    """How long the whole run will take: network calls, which are nearly all of it."""
    measured = [case for case in wanted if subject.missing(case) is None]
    calls = sum(case.steps for case in measured)
    seconds = subject.seconds_per_call()
    return (
        f"{len(measured)} settings, {calls} network calls a sample at {1e3 * seconds:.2f} ms: about "
        f"{calls * samples * seconds / 60:.0f} minutes for {samples} samples, and the features"
    )


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", type=Path, default=Path("out/avatars.bundle"), help="The DiffuseVAE.")
@click.option("--baseline", type=Path, default=None, help="An unconditional model of the same size.")
@click.option("--noise-bundle", type=Path, default=None, help="As --bundle, with settings fitted from noise.")
@click.option("--heldout", type=Path, default=Path("data/heldout.npz"), help="Held-out images; rendered where missing.")
@click.option("--train", type=Path, default=None, help="For the floor at equal counts.  [default: beside --heldout]")
@click.option("--samples", type=click.IntRange(neighbours.K + 1), default=2000, help="Images a setting.")
@click.option("--quick", is_flag=True, help="A few settings only.")
@click.option("--resume", is_flag=True, help="Keep the rows that --out has from the same inputs.")
@click.option("--backend", default="auto", help="As for Sampler.")
@click.option("--precision", default="auto", help="As for Sampler.")
@click.option("--threads", type=int, default=None, help="Default: what affinity and container allow.")
@click.option("--out", type=Path, default=Path("out/quality.json"))
@click.option("--plot", type=Path, default=Path("out/quality.png"))
@click.option("--picture", type=Path, default=Path("out/quality-samples.png"))
def main(
    bundle: Path, baseline: Path | None, noise_bundle: Path | None, heldout: Path, train: Path | None, samples: int,
    quick: bool, resume: bool, backend: str, precision: str, threads: int | None, out: Path, plot: Path, picture: Path,
) -> None:  # fmt: skip
    """Measure quality against time for every way to sample."""
    for place in (out, plot, picture):
        check_file(place)
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    heldout = faces.held_out(heldout, out.parent)
    images = faces.load_faces(heldout)
    beside = train or heldout.with_name("train.npz")
    trained = faces.load_faces(beside) if train is not None or beside.exists() else None
    sampler = Sampler(bundle, backend, precision, threads)
    others = {
        name: Sampler(path, backend, precision, threads) if path is not None else None
        for name, path in (("baseline", baseline), ("noise_bundle", noise_bundle))
    }
    result = header(facts, sampler, others, heldout, images, samples)
    result["settings"] = earlier_rows(out, result) if resume else []
    extractors = [judge.open_extractor(name, sampler.threads) for name in (judge.FIRST, judge.SECOND)]
    picked = trained[:samples] if trained is not None else None
    with study.progress(2 * (len(images) + (len(picked) if picked is not None else 0)), "held-out images") as tick:
        scorer = judge.Judge(images, samples, extractors, tick)
        if picked is not None:
            result["floor"] = {"samples": len(picked), **scorer.scores(picked, tick)}
    subject = study.Study(sampler, others["baseline"], others["noise_bundle"], scorer)
    wanted = cases.quick() if quick else cases.full()
    click.echo(estimate(subject, wanted, samples))
    run(subject, wanted, samples, result, out)
    click.echo(table(result))
    plots.draw_quality(result, plot)
    plots.draw_rows(sample_rows(subject), picture)
    click.echo(f"wrote {out}, {plot} and {picture}")
