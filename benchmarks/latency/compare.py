"""Two commits in one alternating run: whether their images agree, and how many times as fast the new one is.

    git worktree add ../base COMMIT        then in each checkout: build its kernels, and a bundle from the same checkpoint
    python benchmarks/latency/compare.py ../base . --bundles ../base/out/avatars.bundle out/avatars.bundle

Each side is one process for the whole run, with its checkout first on the path. Images are compared first; then the two take
turns. Who begins changes from round to round, so that whatever else the machine does meets both. `--bundles` may be
repeated, for several models. Both sides are called as
`Sampler(path, backend, precision, threads).sample(n, steps=..., seed=...)`, which has meant the same since version 0.1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks import children
from benchmarks.latency.process import PipedProcess
from benchmarks.latency.report import percentiles
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from engine.cli.terminal import Program
from engine.places import check_file
from engine.threads import resolve_threads
from export.dates import now

SIDE = Path(__file__).with_name("side.py")
SIDES = ("base", "new")
PAUSE = 0.05  # seconds between turns: the other side's threads stop spinning and sleep
Say = Callable[[str], None]


class Checkout(PipedProcess):
    """One side in its process; a method call here is a method call of side.Side there."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self._folder = folder.resolve()
        cure = "build that checkout's kernels, and the bundle with that checkout"
        super().__init__(
            SIDE, str(self._folder), threads=threads, who=f"{name}, {self._folder}", cure=cure, PYTHONPATH=str(self._folder)
        )

    def facts(self) -> dict[str, Any]:
        """The commit and what its process says of itself."""
        return {"commit": commit_of(self._folder), **self.ask("facts")}


@dataclass(frozen=True)
class Plan:
    """What is timed: settings of both sides, `rounds` turns of `repeats` runs each, and what must agree first.

    tolerance: how far images may differ on average, in levels of 255.
    """

    backend: str
    precision: str
    threads: int
    batches: tuple[int, ...]
    steps: int
    rounds: int
    repeats: int
    tolerance: float = 0.5


def commit_of(folder: Path) -> str:
    """The short commit of a checkout, with a + where files differ from it; "unknown" where there is no repository."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = children.run(command, capture=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def compare_images(sides: dict[str, Checkout], bundles: dict[str, str], batch: int, plan: Plan) -> float:
    """The mean difference of the images of the same seeds, in levels of 255; BenchmarkError beyond the tolerance."""
    base, new = (side.ask("images", bundles[name], batch, plan.steps) for name, side in sides.items())
    if base.shape != new.shape:
        raise BenchmarkError(
            f"{bundles['new']}: found images of the shape {list(new.shape)}, expected {list(base.shape)} as of the base; "
            f"build both bundles from the same checkpoint"
        )
    difference = float(np.abs(base.astype(np.int16) - new).mean())
    if difference > plan.tolerance:
        raise BenchmarkError(
            f"{bundles['new']}, batch {batch}: found images that differ by {difference:.3g} of 255 on average, expected at "
            f"most {plan.tolerance:g} before anything is timed; build both bundles from the same checkpoint"
        )
    return difference


def compete(sides: dict[str, Checkout], bundles: dict[str, str], batch: int, plan: Plan, say: Say) -> dict[str, Any]:
    """One model at one batch size: images, then turns that alternate."""
    difference = compare_images(sides, bundles, batch, plan)
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(plan.rounds):
        for name in SIDES if number % 2 == 0 else SIDES[::-1]:
            time.sleep(PAUSE)
            times[name] += sides[name].ask("turn", bundles[name], batch, plan.steps, plan.repeats)
    figures = {name: percentiles(values) for name, values in times.items()}
    ratio = round(figures["base"]["p50"] / figures["new"]["p50"], 4)
    say(f"{Path(bundles['new']).name}, batch {batch}: {ratio:.3f} times as fast")
    return {"batch": batch, "mean_difference": round(difference, 5), "total_ms": figures, "ratio": ratio}


def measure(folders: dict[str, Path], pairs: Sequence[tuple[Path, Path]], plan: Plan, say: Say) -> dict[str, Any]:
    """Both sides over all models; the machine is the caller's to add."""
    sides: dict[str, Checkout] = {}
    try:
        for name in SIDES:
            sides[name] = Checkout(name, folders[name], plan.threads)
        checkouts = {name: side.facts() for name, side in sides.items()}
        models = []
        for pair in pairs:
            bundles = {name: str(path.resolve()) for name, path in zip(SIDES, pair, strict=True)}
            opened = [sides[name].ask("open", bundles[name], plan.backend, plan.precision, plan.threads) for name in SIDES]
            if opened[0] != opened[1]:
                raise BenchmarkError(f"{pair[1]}: found {opened[1]}, expected {opened[0]} as of the base; name --backend")
            rows = [compete(sides, bundles, batch, plan, say) for batch in plan.batches]
            models.append({"bundle": pair[1].name, **opened[0], "results": rows})
        return {"checkouts": checkouts, "models": models}
    finally:
        for side in sides.values():
            side.close()


def table(result: dict[str, Any]) -> str:
    """The result for people; a ratio above 1 is the new commit's gain."""
    base, new = (result["checkouts"][name]["commit"] for name in SIDES)
    lines = [f"base {base}, new {new}; {result['steps']} steps, milliseconds of a whole run"]
    head = ("model", "batch", "base p50", "p90", "new p50", "p90", "faster", "images")
    lines.append("{:<28} {:>5} {:>9} {:>8} {:>9} {:>8} {:>8} {:>9}".format(*head))
    for model in result["models"]:
        what = f"{model['bundle'].removesuffix('.bundle')}, {model['backend']} {model['precision']}"
        for row in model["results"]:
            old, fresh = (row["total_ms"][name] for name in SIDES)
            lines.append(
                f"{what:<28} {row['batch']:>5} {old['p50']:>9.3f} {old['p90']:>8.3f} {fresh['p50']:>9.3f} "
                f"{fresh['p90']:>8.3f} {row['ratio']:>7.3f}x {row['mean_difference']:>9.3g}"
            )
    return "\n".join(lines)


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("base", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--bundles", nargs=2, multiple=True, required=True, type=click.Path(path_type=Path),
    help="The base's bundle and the new one's, of the same checkpoint; repeat for several models.",
)
@click.option("--backend", default="native")
@click.option("--precision", default="bf16")
@click.option("--threads", type=int, default=None, help="[default: what affinity and container allow]")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 16), help="Repeat for several.")
@click.option("--steps", type=click.IntRange(2), default=10)
@click.option("--rounds", type=click.IntRange(1), default=10, help="Turns of each side.")
@click.option("--repeats", type=click.IntRange(1), default=10, help="Runs in a turn.")
@click.option("--tolerance", type=float, default=0.5, help="Mean difference of images in levels of 255.")
@click.option("--least", type=float, default=0.98, help="Exit code 1 where the new one is slower than this times the base.")
@click.option("--out", type=Path, default=Path("out/compare.json"))
def main(
    base: Path, new: Path, bundles: tuple[tuple[Path, Path], ...], backend: str, precision: str, threads: int | None,
    batches: tuple[int, ...], steps: int, rounds: int, repeats: int, tolerance: float, least: float, out: Path,
) -> None:  # fmt: skip
    """Time the checkout NEW against the checkout BASE, each with its own kernels and bundles, in alternating turns."""
    check_file(out)
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    plan = Plan(backend, precision, resolve_threads(threads), batches, steps, rounds, repeats, tolerance)
    head = {"format": "diffusevae-compare", "format_version": 1, "date": now(), "machine": facts}
    protocol = {"steps": steps, "rounds": rounds, "repeats": repeats, "tolerance": tolerance, "least": least}
    result = {**head, **protocol, **measure({"base": base, "new": new}, bundles, plan, click.echo)}
    write_json(out, result)
    click.echo(table(result))
    click.echo(f"wrote {out}")
    slow = [row for model in result["models"] for row in model["results"] if row["ratio"] < least]
    if slow:
        raise click.ClickException(f"found {len(slow)} rows in which the new commit is slower than {least:g} times the base")


if __name__ == "__main__":
    main()
