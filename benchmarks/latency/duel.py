"""A fair contest: a process for each contestant, outputs compared first, then turns that alternate.

A contestant that fails (it cannot load, its process ends, its outputs lie beyond its bound) is out for this batch size, with
the reason; the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import worker
from benchmarks.latency.calls import F32, Values
from benchmarks.latency.field import Contestant, Run, Task
from benchmarks.latency.process import PipedProcess
from benchmarks.machine import BenchmarkError

WORKER = Path(worker.__file__)
PAUSE = 0.05  # seconds between turns: the last one's threads stop spinning and sleep
Say = Callable[[str], None]
Given = tuple[F32, Values, int]  # what Runner.eps is given
Outputs = tuple[list[F32], F32]  # e of each checked call, and x of a whole chain


class Process(PipedProcess):
    """A contestant in its own process: a method of its runner (or `peak_rss_mb`) is asked for by name."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        self.contestant = contestant
        started = time.monotonic()
        super().__init__(WORKER, threads=task.threads, who=contestant.name, cure="leave it out with --skip")
        try:
            self.load_ms: float = self.exchange(worker.Start(contestant, task, started))
        except BaseException:
            self.close()
            raise


@dataclass
class Record:
    """What was measured of one contestant at one batch size; milliseconds."""

    load_ms: float
    first_sample_ms: float
    peak_rss_mb: float
    totals: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)

    def add(self, run: Run) -> None:
        """Count one timed run."""
        self.totals.append(run.total_ms)
        self.calls += run.calls_ms
        self.stages.append({**run.stages_ms, "network": sum(run.calls_ms), "total": run.total_ms})


@dataclass(frozen=True)
class Plan:
    """How much is timed: `rounds` turns each; a turn is runs until `seconds` are spent, at least one, at most `repeats`."""

    rounds: int
    repeats: int
    seconds: float


# --- Outputs ------------------------------------------------------------------------------------------------------------


def relative_error(found: F32, expected: F32) -> float:
    """|found - expected| / |expected|, both Euclidean norms over all elements; inf when anything is not finite."""
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.linalg.norm((found - expected).ravel()) / max(float(np.linalg.norm(expected.ravel())), 1e-30))


def mean_difference(found: F32, expected: F32) -> float:
    """Mean absolute difference of images in [-1, 1]; clipping makes single pixels chaotic, so the mean counts."""
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - expected).mean())


def agreement(outputs: Sequence[tuple[Contestant, Outputs]], batch: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All outputs beside those of the first contestant in float32 that are finite: a row each, and faults by name."""
    reference, (calls, chain) = next(
        (entry for entry in outputs if entry[0].precision == "f32" and np.isfinite(entry[1][1]).all()), outputs[0]
    )
    rows: list[dict[str, Any]] = []
    faults: dict[str, str] = {}
    for contestant, (other_calls, other_chain) in outputs:
        step_error = max(relative_error(a, b) for a, b in zip(other_calls, calls, strict=True))
        chain_error = mean_difference(other_chain, chain)
        beyond = [
            f"{what} differs by {error:.2g} from that of {reference.name}, more than {bound:g}"
            for what, error, bound in (
                ("eps of one step", step_error, contestant.step_bound),
                ("image of a chain", chain_error, contestant.chain_bound),
            )
            if not error <= bound
        ]
        if beyond:
            faults[contestant.name] = (
                f"{' and '.join(beyond)}; expected the same images before anything is timed; rebuild the bundle from the "
                f"same checkpoint"
            )
        row: dict[str, Any] = {"contestant": contestant.name, "reference": reference.name, "batch": batch}
        row |= {"step_error": _finite(step_error), "step_bound": contestant.step_bound}
        rows.append(row | {"chain_error": _finite(chain_error), "chain_bound": contestant.chain_bound})
    return rows, faults


def _finite(error: float) -> float | None:
    """For JSON, which has no infinity."""
    return error if np.isfinite(error) else None


# --- The contest --------------------------------------------------------------------------------------------------------


@dataclass
class Contest:
    """All contestants at one batch size. `records`, `agreement` and `failures` (reasons by name) are the result."""

    task: Task
    batch: int
    say: Say
    records: dict[str, Record] = field(default_factory=dict)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)

    def load(self, contestant: Contestant) -> None:
        """Start a contestant; its first whole run is part of what is measured."""
        self.say(f"batch {self.batch}: loading {contestant.name}")
        try:
            process = self.processes[contestant.name] = Process(contestant, self.task)
            first: Run = process.ask("run", self.batch, 0, self.task.steps)
            self.records[contestant.name] = Record(process.load_ms, first.total_ms, process.ask("peak_rss_mb"))
        except BenchmarkError as error:
            self.drop(contestant.name, str(error))

    def compare(self, inputs: Sequence[Given]) -> None:
        """Leave out whose outputs lie beyond its bound."""
        self.say(f"batch {self.batch}: comparing outputs")
        outputs: list[tuple[Contestant, Outputs]] = []
        for name, process in list(self.processes.items()):
            try:
                calls = [process.ask("eps", *given) for given in inputs]
                outputs.append((process.contestant, (calls, process.ask("run", self.batch, 0, self.task.steps).x)))
            except BenchmarkError as error:
                self.drop(name, str(error))
        if outputs:
            self.agreement, faults = agreement(outputs, self.batch)
            for name, reason in faults.items():
                self.drop(name, reason)

    def turn(self, name: str, plan: Plan) -> None:
        """A one-step run that does not count, since the others have emptied the caches, then the timed ones."""
        process, record = self.processes[name], self.records[name]
        time.sleep(PAUSE)
        try:
            process.ask("run", self.batch, 0, 1)
            started = time.perf_counter()
            for _ in range(plan.repeats):
                record.add(process.ask("run", self.batch, 0, self.task.steps))
                if time.perf_counter() - started > plan.seconds:
                    break
        except BenchmarkError as error:
            self.drop(name, str(error))

    def drop(self, name: str, reason: str) -> None:
        """Out for this batch size: its process ends and what was timed of it does not count."""
        self.say(f"batch {self.batch}: {name} FAILED: {reason}")
        self.failures[name] = reason
        self.records.pop(name, None)
        process = self.processes.pop(name, None)
        if process is not None:
            process.close()

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()


def compete(
    contestants: Sequence[Contestant], task: Task, inputs: Sequence[Given], batch: int, plan: Plan, say: Say
) -> Contest:
    """Start all contestants, compare their outputs on these inputs, time in alternating turns."""
    contest = Contest(task, batch, say)
    try:
        for contestant in contestants:
            contest.load(contestant)
        contest.compare(inputs)
        for index in range(plan.rounds):
            say(f"batch {batch}: round {index + 1} of {plan.rounds}")
            # Each starts a round once in a while: the first of one meets the machine as the last left it.
            for name in rotated(contest.processes, index):
                contest.turn(name, plan)
        return contest
    finally:
        contest.close()


def rotated(processes: Mapping[str, Process], by: int) -> list[str]:
    names = list(processes)
    first = by % max(len(names), 1)
    return names[first:] + names[:first]
