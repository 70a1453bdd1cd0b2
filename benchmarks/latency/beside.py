"""The latency of a step beside busy processes: every contestant alone, then with one and with two on the same processors.

    python benchmarks/latency/beside.py out/avatars.bundle

A busy process counts in a loop and ends with the benchmark. Outputs are compared before anything is timed; the contestants
take turns under each load. Goals of the native engine: beside one busy process at most 1.7 times the time alone and no
slower than one thread, beside two a 90th percentile of at most 4 times the median alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click

from benchmarks import children
from benchmarks.latency import bundles, duel
from benchmarks.latency.calls import check_inputs
from benchmarks.latency.field import CONTESTANTS, Contestant, Task, skip_reason
from benchmarks.latency.report import percentiles
from benchmarks.latency.targets import BF16, ONE
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from engine.backends import available
from engine.bundle.reader import Bundle
from engine.cli.terminal import Program
from engine.places import check_file
from engine.processor import this_processor
from engine.threads import resolve_threads
from export.dates import now

LOADS = (0, 1, 2)  # busy processes
BUSY = "while True: pass"
MOST, MOST_P90 = 1.7, 4.0
# The fastest of each engine in floating point; `skip_reason` leaves out what cannot run.
NAMES = ("onnxruntime f32", "openvino f32", "openvino bf16", BF16, ONE)


def field(task: Task) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and why the others do not."""
    reasons = {c: skip_reason(c, task, this_processor(), available()) for c in CONTESTANTS if c.name in NAMES}
    left_out = {contestant.name: reason for contestant, reason in reasons.items() if reason is not None}
    return [contestant for contestant, reason in reasons.items() if reason is None], left_out


def measure(
    task: Task, contestants: Sequence[Contestant], plan: duel.Plan, say: duel.Say, loads: Sequence[int] = LOADS
) -> dict[str, Any]:
    """All contestants under each load, the first of which is none; milliseconds of a network call at batch 1."""
    manifest = Bundle.open(task.bundle).manifest
    contest = duel.Contest(task, 1, say)
    rows: list[dict[str, Any]] = []
    try:
        for contestant in contestants:
            contest.load(contestant)
        contest.compare(check_inputs(manifest, 1))
        for busy in loads:
            with ExitStack() as running:
                for _ in range(busy):
                    running.enter_context(children.Child([sys.executable, "-c", BUSY]))
                for number in range(plan.rounds):
                    say(f"{busy} busy: round {number + 1} of {plan.rounds}")
                    for name in duel.rotated(contest.processes, number):
                        contest.turn(name, plan)
            for name, record in contest.records.items():
                rows.append({"contestant": name, "busy": busy, "step_ms": percentiles(record.calls)})
                record.calls = []
    finally:
        contest.close()
    alone = {row["contestant"]: row["step_ms"]["p50"] for row in rows if row["busy"] == 0}
    for row in rows:
        row["times_alone"] = {p: round(row["step_ms"][p] / alone[row["contestant"]], 3) for p in ("p50", "p90", "p99")}
    return {
        "format": "diffusevae-beside", "format_version": 1, "date": now(), "threads": task.threads, "steps": task.steps,
        "rounds": plan.rounds, "most_runs_a_turn": plan.repeats, "seconds_a_turn": plan.seconds, "model": manifest.name,
        "agreement": contest.agreement, "failures": contest.failures, "results": rows, "goals": judge(rows),
    }  # fmt: skip


def judge(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals: what was found and the most that is allowed; a row that was not timed judges nothing."""
    found = {(row["contestant"], row["busy"]): row for row in rows}
    goals = []

    def goal(what: str, value: float, most: float) -> None:
        goals.append({"goal": what, "found": round(value, 3), "most": most, "good": value <= most})

    if one_busy := found.get((BF16, 1)):
        goal("beside one busy process, p50 over that alone", one_busy["times_alone"]["p50"], MOST)
        if single := found.get((ONE, 1)):
            ratio = one_busy["step_ms"]["p50"] / single["step_ms"]["p50"]
            goal("beside one busy process, p50 over that of one thread", ratio, 1.0)
    if two_busy := found.get((BF16, 2)):
        goal("beside two busy processes, p90 over p50 alone", two_busy["times_alone"]["p90"], MOST_P90)
    return goals


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{result['model']}, batch 1, {result['threads']} threads, milliseconds of a step"]
    lines.append(f"{'contestant':<24}{'busy':>5}{'p50':>9}{'p90':>9}{'p99':>9}{'p50/alone':>11}{'p90/alone':>11}")
    for row in sorted(result["results"], key=lambda row: (row["contestant"], row["busy"])):
        step, times = row["step_ms"], row["times_alone"]
        lines.append(
            f"{row['contestant']:<24}{row['busy']:>5}{step['p50']:>9.2f}{step['p90']:>9.2f}{step['p99']:>9.2f}"
            f"{times['p50']:>11.2f}{times['p90']:>11.2f}"
        )
    for goal in result["goals"]:
        lines.append(f"{'pass' if goal['good'] else 'miss'}: {goal['goal']} {goal['found']:.2f}, at most {goal['most']:g}")
    return "\n".join([*lines, *(f"left out: {name}: {reason}" for name, reason in result["left_out"].items())])


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--threads", type=int, default=None, help="[default: what affinity and container allow]")
@click.option("--steps", type=click.IntRange(2), default=10)
@click.option("--rounds", type=click.IntRange(1), default=6, help="Turns of each contestant under each load.")
@click.option("--repeats", type=click.IntRange(1), default=20, help="Most runs in a turn.")
@click.option("--seconds", type=float, default=3.0, help="A turn starts no further run after so long.")
@click.option("--out", type=Path, default=Path("out/beside.json"))
def main(bundle: Path, threads: int | None, steps: int, rounds: int, repeats: int, seconds: float, out: Path) -> None:
    """Time BUNDLE's steps beside 0, 1 and 2 busy processes."""
    check_file(out)
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    task = bundles.task_from(bundle, None, steps, resolve_threads(threads), out.parent, ())
    contestants, left_out = field(task)
    measured = measure(task, contestants, duel.Plan(rounds, repeats, seconds), click.echo)
    result = {**measured, "machine": facts, "left_out": left_out}
    write_json(out, result)
    click.echo(table(result))
    click.echo(f"wrote {out}")
    if measured["failures"]:
        raise BenchmarkError(f"found contestants that failed, expected none: {measured['failures']}")


if __name__ == "__main__":
    main()
