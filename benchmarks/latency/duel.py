"""How are contestants timed fairly? One process each, outputs compared first, then turns that alternate."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import children
from benchmarks.latency import worker
from benchmarks.latency.field import F32, Contestant, Run, Task
from benchmarks.machine import BenchmarkError
from engine.bundle.manifest import Model

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 0.05  # seconds between turns: the last one's threads stop spinning and sleep
CHECKED_TIMESTEPS = (0.999, 0.5, 0.0)  # of T, where one network call is compared


class Process:
    """A contestant in its own process; a method call here is a method call there."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        self.contestant = contestant
        self._pipe, theirs = Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads), "OPENBLAS_NUM_THREADS": "1"}
        started = time.monotonic()
        self._child = children.Child(
            [sys.executable, str(ROOT / "benchmarks" / "latency" / "worker.py"), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdout=2,  # what libraries print must not mix with the benchmark's own output
        )
        theirs.close()
        try:
            self.load_ms: float = self._exchange(worker.Start(contestant, task, started))
        except BenchmarkError:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the contestant's runner (or `peak_rss_mb`) and wait for its answer."""
        return self._exchange((method, arguments))

    def _exchange(self, message: Any) -> Any:
        try:
            self._pipe.send(message)
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            code = self._child.end(patience=10)
            raise BenchmarkError(
                f"{self.contestant.name}: found that its process ended (exit code {code}), expected an answer; "
                f"look at its messages above, and at the free memory"
            ) from error
        if kind != "ok":
            raise BenchmarkError(f"{self.contestant.name}: found {value}; expected an answer; leave it out with --skip")
        return value

    def close(self) -> None:
        """End the process; harmless when it has ended already."""
        self._pipe.close()  # it reads the end of the pipe, and leaves
        self._child.end(patience=10)


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


def check_inputs(model: Model, T: int, n: int) -> list[tuple[F32, F32 | None, F32 | None, int]]:
    """Inputs (x, cond, z, timestep) of the network calls that are compared."""
    rng = np.random.default_rng(0)
    shape = (n, model.channels, model.image_size, model.image_size)
    inputs = []
    for part in CHECKED_TIMESTEPS:
        x = rng.standard_normal(shape).astype(np.float32)
        cond = np.tanh(rng.standard_normal(shape)).astype(np.float32) if model.conditional else None
        z = rng.standard_normal((n, model.z_dim or 0)).astype(np.float32) if model.z_conditioned else None
        inputs.append((x, cond, z, min(T - 1, int(part * T))))
    return inputs


def agreement(outputs: Sequence[tuple[Contestant, list[F32], F32]], batch: int) -> list[dict[str, Any]]:
    """Compare everybody's outputs with the first contestant's; BenchmarkError names each one beyond its bound.

    outputs: (contestant, eps of each checked call, x of a whole chain). The first must be a float32 one.
    """
    reference, eps, chain = outputs[0]
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for contestant, other_eps, other_chain in outputs:
        step_error = max(relative_error(a, b) for a, b in zip(other_eps, eps, strict=True))
        chain_error = mean_difference(other_chain, chain)
        for what, error, bound in (
            ("eps of one step", step_error, contestant.step_bound),
            ("image of a chain", chain_error, contestant.chain_bound),
        ):
            if not error <= bound:
                faults.append(f"{contestant.name}: {what} differs by {error:.2g}, more than {bound:g}")
        row: dict[str, Any] = {"contestant": contestant.name, "reference": reference.name, "batch": batch}
        row |= {"step_error": step_error, "step_bound": contestant.step_bound}
        rows.append(row | {"chain_error": chain_error, "chain_bound": contestant.chain_bound})
    if faults:
        raise BenchmarkError(
            f"contestants disagree at batch {batch} with {reference.name}: {'; '.join(faults)}; expected the same images "
            f"before anything is timed; rebuild the bundle from the same checkpoint"
        )
    return rows


Say = Callable[[str], None]


def compete(
    contestants: Sequence[Contestant], task: Task, model: Model, T: int, batch: int, plan: Plan, say: Say
) -> tuple[dict[str, Record], list[dict[str, Any]]]:
    """Start everybody, compare, time in alternating turns; records by name, and the rows of the comparison."""
    processes: list[Process] = []
    try:
        records = {}
        for contestant in contestants:
            say(f"batch {batch}: loading {contestant.name}")
            processes.append(Process(contestant, task))
            first: Run = processes[-1].ask("run", batch, 0, task.steps)
            peak = processes[-1].ask("peak_rss_mb")
            records[contestant.name] = Record(processes[-1].load_ms, first.total_ms, peak)
        say(f"batch {batch}: comparing outputs")
        rows = agreement([_outputs(process, model, T, task, batch) for process in processes], batch)
        for index in range(plan.rounds):
            say(f"batch {batch}: round {index + 1} of {plan.rounds}")
            # Everybody starts a round once in a while: the first of one meets the machine as the last left it.
            turn = index % len(processes)
            for process in processes[turn:] + processes[:turn]:
                _take_turn(process, records[process.contestant.name], task, batch, plan)
        return records, rows
    finally:
        for process in processes:
            process.close()


def _outputs(process: Process, model: Model, T: int, task: Task, batch: int) -> tuple[Contestant, list[F32], F32]:
    eps = [process.ask("eps", *inputs) for inputs in check_inputs(model, T, batch)]
    return process.contestant, eps, process.ask("run", batch, 0, task.steps).x


def _take_turn(process: Process, record: Record, task: Task, batch: int, plan: Plan) -> None:
    """A one-step run that does not count, since the others have emptied the caches, then the timed ones."""
    time.sleep(PAUSE)
    process.ask("run", batch, 0, 1)
    started = time.perf_counter()
    for repeat in range(plan.repeats):
        record.add(process.ask("run", batch, 0, task.steps))
        if time.perf_counter() - started > plan.seconds and repeat + 1 < plan.repeats:
            return
