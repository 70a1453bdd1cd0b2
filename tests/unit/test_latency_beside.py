"""The latency benchmark beside busy processes, and its budgets of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.latency import beside, deadlines, duel
from engine import Sampler
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from export.fitting.objective import colour_means
from tests import toy
from tests.latency_tasks import FACTS, ORT, GoldenBundle, check_schema, golden_task


def test_latency_beside_a_busy_process_is_what_its_schema_promises(golden_bundle: GoldenBundle) -> None:
    task = golden_task(golden_bundle, "form1")
    result = beside.measure(task, [ORT], duel.Plan(rounds=1, repeats=1, seconds=1.0), lambda _: None, loads=(0, 1))
    result |= {"machine": FACTS, "left_out": {"native bf16": "no engine"}}
    check_schema("beside", result)
    alone, pressed = result["results"]
    assert (alone["busy"], pressed["busy"], alone["times_alone"]["p50"]) == (0, 1, 1.0)
    assert alone["step_ms"]["n"] == pressed["step_ms"]["n"] == task.steps
    assert pressed["times_alone"]["p50"] == pytest.approx(pressed["step_ms"]["p50"] / alone["step_ms"]["p50"], abs=1e-3)
    assert result["goals"] == []  # the native engine did not run
    assert "left out: native bf16: no engine" in beside.table(result)


def test_budgets_beside_a_busy_process_are_what_their_schema_promises(tmp_path: Path) -> None:
    path = toy.build_bundle(tmp_path / "fitted.bundle")
    chains = {5: [400, 244, 111, 38, 9], 1: [300]}
    write_fitted(path, [as_defaults({"timesteps": chain, "t_start": chain[0]}) for chain in chains.values()], {})
    with Sampler(path, "onnxruntime", "f32", threads=1) as sampler:
        times = deadlines.run_times(sampler, repeats=2)
        assert list(times) == [5, 1]
        more = deadlines.added(sampler, rounds=4)
        assert (more["steps"], more["plain_ms"]["n"], list(more["added"])) == (5, 4, ["budget", "callback"])
        rows = deadlines.measure(sampler, (1e-3, 1e6), (0, 1), 3, lambda _: None)
        heldout = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
        results = deadlines.compare(rows, times, deadlines.Distances(sampler, heldout, colour_means, 3))
        assert [(row["busy"], row["promised"], row["kept_share"]) for row in results] == [
            (0, 0, None), (0, 3, 1.0), (1, 0, None), (1, 3, 1.0)
        ]  # fmt: skip
        assert [row["steps"] for row in results[:2]] == [{"1": 3}, {"5": 3}]  # the fastest without a promise, else the best
        assert all(row["fd"] == row["fixed_fd"] for row in results), "one setting served all, which is the nearest too"
    result = {
        "format": "diffusevae-deadlines", "format_version": 1, "date": "now", "machine": FACTS, "model": "toy",
        "backend": "onnxruntime", "precision": "f32", "threads": 1, "requests": 3, "metric": None,
        "alone_ms": {str(steps): mean for steps, mean in times.items()}, "results": results,
        "added": more, "goals": deadlines.judge(results),
    }  # fmt: skip
    check_schema("deadlines", result)
    assert "2 of 2 rows keep 99%" in deadlines.table(result)
    shown = result | {"added": more | {"added": {"budget": 0.004, "callback": 0.021}}}
    assert "a budget adds 0.40 % (goal: 1 %), a callback 2.10 %" in deadlines.table(shown)
    late = deadlines.Row(1, 5.0, [4.0, 6.0], [5, 5], [True, True], np.zeros((2, 1, 1, 3), np.uint8))
    assert [goal["good"] for goal in deadlines.judge([late.figures()])] == [False]


def test_goals_beside_busy_processes_are_judged_by_ratios() -> None:
    def row(name: str, busy: int, p50: float, times: float) -> dict[str, Any]:
        return {"contestant": name, "busy": busy, "step_ms": {"p50": p50}, "times_alone": {"p50": times, "p90": 2 * times}}

    rows = [row(beside.BF16, 1, 16.0, 1.6), row(beside.ONE, 1, 15.0, 1.1), row(beside.BF16, 2, 25.0, 2.5)]
    judged = [(goal["found"], goal["good"]) for goal in beside.judge(rows)]
    assert judged == [(1.6, True), (1.067, False), (5.0, False)]
