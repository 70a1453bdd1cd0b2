"""Requests with a budget of time beside busy processes: how many kept it, and what the pictures lost by it.

    python benchmarks/latency/deadlines.py out/avatars.bundle --heldout out/heldout.npz

Each row is one load and one budget: `requests` calls of `sample(1, seed, budget_ms=..., at_most=True)` one after another. A
promise is a call for which some fitted setting was expected in time; where none was, the fastest ran without a promise, and
that is counted apart. Goal: 99 of 100 promises are kept. With --heldout the images' distance is given beside that of the
one fitted setting whose time is nearest to the row's mean, on the same seeds.

Before that, alone and in turns: what a budget, and a callback after each step, add to the same images. Goal for the former:
1 %.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks import children
from benchmarks.latency.beside import BUSY
from benchmarks.latency.report import percentiles
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from benchmarks.quality.faces import load_faces
from benchmarks.quality.judge import FIRST, METRIC, extract, open_extractor
from engine import Sampler
from engine.cli.terminal import Program
from engine.commands import command
from engine.places import check_file
from engine.result import U8
from export.dates import now
from export.fitting.features import Features
from export.fitting.frechet import Moments, frechet_distance, moments
from export.fitting.objective import CHUNK

GOAL = 0.99  # of all promises are kept
ADDED = 0.01  # at most, by a budget
BUDGETS = (8.0, 12.0, 20.0, 40.0)
FOREVER = 1e9  # ms
LOADS = (0, 1, 2)  # busy processes
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One load and one budget: what each request took, the steps of its setting, whether it was promised, its image."""

    busy: int
    budget_ms: float
    took_ms: list[float]
    steps: list[int]
    promised: list[bool]
    images: U8

    def figures(self) -> dict[str, Any]:
        """The row of the table."""
        kept = [took <= self.budget_ms for took, promised in zip(self.took_ms, self.promised, strict=True) if promised]
        return {
            "busy": self.busy,
            "budget_ms": self.budget_ms,
            "promised": len(kept),
            "kept": sum(kept),
            "kept_share": round(sum(kept) / len(kept), 5) if kept else None,
            "took_ms": percentiles(self.took_ms),
            "steps": {str(steps): count for steps, count in sorted(Counter(self.steps).items())},
        }


def ask(sampler: Sampler, busy: int, budget_ms: float, requests: int) -> Row:
    """All requests of a row, one after another."""
    images, took, steps, promised = [], [], [], []
    for seed in range(requests):
        batch = sampler.sample(1, seed=seed, budget_ms=budget_ms, at_most=True)
        assert batch.deadline is not None, "a request with a budget has its outcome"
        images.append(batch.images)
        took.append(batch.deadline.took_ms)
        steps.append(batch.setting.steps)
        promised.append(batch.deadline.expected_ms <= budget_ms)
    return Row(busy, budget_ms, took, steps, promised, np.concatenate(images))


def measure(sampler: Sampler, budgets: Sequence[float], loads: Sequence[int], requests: int, say: Say) -> list[Row]:
    """Every budget under each load, from a sampler that has measured its run times before the first busy process."""
    rows: list[Row] = []
    for busy in loads:
        with ExitStack() as running:
            for _ in range(busy):
                running.enter_context(children.Child([sys.executable, "-c", BUSY]))
            for budget in budgets:
                say(f"{busy} busy, budget {budget:g} ms")
                rows.append(ask(sampler, busy, budget, requests))
    return rows


def added(sampler: Sampler, rounds: int = 300) -> dict[str, Any]:
    """Medians in ms of the setting that a boundless budget takes: plain, with a budget, and with a callback, in turns."""
    steps = sampler.sample(1, seed=0, budget_ms=FOREVER).setting.steps
    plainly: dict[str, Any] = {"steps": steps}
    ways = {"plain": plainly, "budget": {"budget_ms": FOREVER}, "callback": plainly | {"callback": lambda _: False}}
    took: dict[str, list[float]] = {name: [] for name in ways}
    images = [sampler.sample(1, seed=1, **options).images for options in ways.values()]
    if any(not np.array_equal(one, images[0]) for one in images):
        raise BenchmarkError("found other images with a budget or a callback than without, expected the same; report it")
    names = list(ways)
    for turn in range(rounds):
        for name in (*names[turn % 3 :], *names[: turn % 3]):  # none is always after the same one
            began = perf_counter()
            sampler.sample(1, seed=turn, **ways[name])
            took[name].append(1e3 * (perf_counter() - began))
    plain = float(np.median(took["plain"]))
    more = {name: round(float(np.median(took[name])) / plain - 1, 5) for name in ("budget", "callback")}
    return {"steps": steps, "rounds": rounds, "plain_ms": percentiles(took["plain"]), "added": more, "most": ADDED}


def run_times(sampler: Sampler, repeats: int = 50) -> dict[int, float]:
    """The mean milliseconds of each fitted setting, alone, by its steps."""
    fitted = sampler.bundle.manifest.fitted
    if fitted is None:
        raise BenchmarkError(
            f"{sampler.bundle.path}: found no fitted settings, expected some to choose from; fit them with: "
            f"{command('fit-setting', sampler.bundle.path, '--images', 'FILE')}"
        )
    times = {}
    for setting in fitted.settings:
        runs = [sampler.sample(1, seed=seed, steps=setting.steps).timings.total_ms for seed in range(repeats)]
        times[setting.steps] = float(np.mean(runs))
    return times


class Distances:
    """Of images of seeds 0, 1, ... to the held-out ones; a fixed setting's are found once."""

    def __init__(self, sampler: Sampler, heldout: U8, features: Features, requests: int) -> None:
        self.sampler, self.features, self.requests = sampler, features, requests
        self.heldout = self._moments(heldout)
        self._of_steps: dict[int, float] = {}

    def of(self, images: U8) -> float:
        """FD of these images."""
        return round(frechet_distance(self.heldout, self._moments(images)), 2)

    def of_steps(self, steps: int) -> float:
        """FD of a fitted setting."""
        if steps not in self._of_steps:
            parts = [
                self.sampler.sample(seed=list(range(begin, min(begin + CHUNK, self.requests))), steps=steps).images
                for begin in range(0, self.requests, CHUNK)
            ]
            self._of_steps[steps] = self.of(np.concatenate(parts))
        return self._of_steps[steps]

    def _moments(self, images: U8) -> Moments:
        return moments(extract(self.features, images, lambda _: None))


def compare(rows: Sequence[Row], times: dict[int, float], distances: Distances | None) -> list[dict[str, Any]]:
    """The table; with distances, beside the fixed setting of nearest mean time. `times`: alone, of each fitted setting."""
    results = []
    for row in rows:
        result = row.figures()
        if distances is not None:
            usual = [times[steps] for steps in row.steps]  # what they take alone: a load slows both alike
            nearest = min(times, key=lambda steps: abs(times[steps] - float(np.mean(usual))))
            result |= {"fd": distances.of(row.images), "fixed_steps": nearest, "fixed_fd": distances.of_steps(nearest)}
        results.append(result)
    return results


def judge(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goal for every row in which anything was promised."""
    return [
        {"busy": row["busy"], "budget_ms": row["budget_ms"], "found": row["kept_share"], "least": GOAL,
         "good": row["kept_share"] >= GOAL}
        for row in results if row["kept_share"] is not None
    ]  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    head = f"{'busy':>4} {'budget':>7} {'promised':>9} {'kept':>8} {'p50 ms':>8} {'p99 ms':>8}  requests x steps"
    lines = [f"{result['model']}, {result['backend']} {result['precision']}, {result['threads']} threads", head]
    for row in result["results"]:
        share = "-" if row["kept_share"] is None else f"{100 * row['kept_share']:.2f} %"
        chosen = ", ".join(f"{count} x {steps}" for steps, count in row["steps"].items())
        line = f"{row['busy']:>4} {row['budget_ms']:>7g} {row['promised']:>9} {share:>8} {row['took_ms']['p50']:>8.2f} "
        line += f"{row['took_ms']['p99']:>8.2f}  {chosen}"
        if "fd" in row:
            line += f"; FD {row['fd']:g}, always {row['fixed_steps']}: {row['fixed_fd']:g}"
        lines.append(line)
    more = result["added"]
    budget, callback = (f"{100 * more['added'][name]:.2f} %" for name in ("budget", "callback"))
    alone = f"{more['steps']} steps alone: {more['plain_ms']['p50']:.2f} ms"
    lines.append(f"{alone}; a budget adds {budget} (goal: {100 * more['most']:g} %), a callback {callback}")
    missed = [goal for goal in result["goals"] if not goal["good"]]
    return "\n".join([*lines, f"{len(result['goals']) - len(missed)} of {len(result['goals'])} rows keep {GOAL:.0%}"])


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--budget", "budgets", type=float, multiple=True, default=BUDGETS, help="Milliseconds; repeat for several.")
@click.option("--busy", "loads", type=click.IntRange(0), multiple=True, default=LOADS, help="Busy processes; repeat.")
@click.option("--requests", type=click.IntRange(2), default=2000, help="Requests of each row.")
@click.option("--backend", default="auto")
@click.option("--precision", default="auto")
@click.option("--threads", type=int, default=None, help="[default: what affinity and container allow]")
@click.option("--heldout", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Images for distances (.npz).")
@click.option("--out", type=Path, default=Path("out/deadlines.json"))
def main(
    bundle: Path, budgets: tuple[float, ...], loads: tuple[int, ...], requests: int, backend: str, precision: str,
    threads: int | None, heldout: Path | None, out: Path,
) -> None:  # fmt: skip
    """Ask BUNDLE for images within budgets of time, beside busy processes."""
    check_file(out)
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    with Sampler(bundle, backend, precision, threads) as sampler:
        times = run_times(sampler)
        more = added(sampler)
        rows = measure(sampler, budgets, loads, requests, click.echo)
        distances = None
        if heldout is not None:
            distances = Distances(sampler, load_faces(heldout), open_extractor(FIRST, sampler.threads), requests)
        results = compare(rows, times, distances)
        result = {
            "format": "diffusevae-deadlines", "format_version": 1, "date": now(), "machine": facts,
            "model": sampler.bundle.manifest.name, "backend": sampler.backend, "precision": sampler.precision,
            "threads": sampler.threads, "requests": requests, "metric": METRIC if heldout else None,
            "alone_ms": {str(steps): round(mean, 3) for steps, mean in times.items()}, "added": more, "results": results,
            "goals": judge(results),
        }  # fmt: skip
    write_json(out, result)
    click.echo(table(result))
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
