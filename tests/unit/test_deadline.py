"""Budgets of time: the best fitted setting that keeps one, what is said where none does, and chains that end early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import ArgumentError, DeadlineError, NumericsError, Sampler, StepInfo
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from engine.cli.main import cli
from engine.deadline import PROBES, Budget, RunTimes
from engine.result import Timings
from tests import toy
from tests.http_served import eventually, serving
from tests.samplers import ANY_BACKEND

CHAINS = {10: [900, 800, 700, 600, 500, 400, 300, 200, 100, 10], 5: [400, 244, 111, 38, 9], 3: [400, 150, 25], 1: [300]}
BEST_FIRST = (5, 10, 3, 1)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampler]:
    path = toy.build_bundle(tmp_path_factory.mktemp("deadline") / "fitted.bundle")
    write_fitted(path, [as_defaults({"timesteps": CHAINS[calls], "t_start": CHAINS[calls][0]}) for calls in BEST_FIRST], {})
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as opened:
        yield opened


@pytest.fixture
def known(sampler: Sampler) -> RunTimes:
    """A sampler for which one image has always taken 1 ms and 2 ms a call; one run in 50 took three times as long."""
    times = RunTimes()
    for i in range(100):
        multiple = 3 if i % 50 == 0 else 1
        times.add(5, Timings(first_step_ms=2.0 * multiple, other_steps_ms=[2.0 * multiple] * 4, total_ms=11.0 * multiple))
    sampler._deadlines.times = {(1, 1, None, False): times}
    return times


def test_times_are_medians_and_a_multiple_that_nearly_all_runs_keep(known: RunTimes) -> None:
    assert known.usual(5) == 11.0
    assert known.usual(3) == 7.0
    assert known.kept(3) == 21.0
    for _ in range(600):  # the window has moved on: the slow runs are forgotten
        known.add(5, Timings(first_step_ms=2.0, other_steps_ms=[2.0] * 4, total_ms=11.0))
    assert known.kept(3) == 7.0


@pytest.mark.parametrize(("budget", "calls"), [(1000.0, 5), (33.0, 5), (32.9, 3), (21.0, 3), (20.0, 1), (9.0, 1)])
def test_the_best_setting_that_keeps_the_budget(sampler: Sampler, known: RunTimes, budget: float, calls: int) -> None:
    batch = sampler.sample(1, seed=4, budget_ms=budget)
    assert batch.timesteps.tolist() == CHAINS[calls]
    np.testing.assert_array_equal(batch.images, sampler.sample(1, seed=4, steps=calls).images)
    promise = batch.deadline
    assert promise is not None
    assert (promise.budget_ms, promise.calls, promise.done) == (budget, calls, calls)
    assert promise.kept == (promise.took_ms <= budget)
    assert len(known.multiple) == 101


def test_a_budget_that_nothing_keeps(sampler: Sampler, known: RunTimes) -> None:
    with pytest.raises(DeadlineError, match=r"found 1 call for 1 image in 9 ms \(99 of 100 runs; half of them in 3\)"):
        sampler.sample(1, budget_ms=8.0)
    assert sampler.sample(1, budget_ms=8.0, at_most=True).timesteps.tolist() == CHAINS[1]


def test_a_new_size_is_measured_first(sampler: Sampler) -> None:
    sampler._deadlines.times = {}
    runs: list[int] = []
    batch = sampler.sample(2, seed=1, budget_ms=1e6, callback=lambda info: runs.append(info.step) or False)
    assert runs == [0, 1, 2, 3, 4], "the measured runs are not the caller's"
    assert list(sampler._deadlines.times) == [(2, 1, None, False)]
    assert len(sampler._deadlines.times[2, 1, None, False].call) == 2 * PROBES + 1
    np.testing.assert_array_equal(batch.images, sampler.sample(2, seed=1, steps=5).images)


def test_a_server_measures_a_run_at_a_time(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler._deadlines.times = {}
    runs: list[int] = []
    run = sampler._pipeline.run
    monkeypatch.setattr(sampler._pipeline, "run", lambda request: runs.append(len(request.table.rows)) or run(request))
    found = []
    while sampler.probe(2, seed=0):
        found.append(list(runs))
        runs.clear()
    assert found == [[1], *([10], [1]) * PROBES]
    assert len(sampler._deadlines.times[2, 1, None, False].call) == 2 * PROBES


def test_a_probe_is_whole_and_is_made_again_where_it_failed(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler._deadlines.times = {}
    assert sampler.probe(2, seed=0, stop=lambda: True), "the end of the caller's own run is not a probe's"
    times = sampler._deadlines.times[2, 1, None, False]

    def fail(request: Any) -> None:
        raise NumericsError("of the network")

    monkeypatch.setattr(sampler._pipeline, "run", fail)
    with pytest.raises(NumericsError):
        sampler.probe(2, seed=0)
    assert times.probes == 2 * PROBES


def test_an_http_server_measures_while_it_is_quiet(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.http.worker.QUIET_S", 1e6)
    with serving(sampler.bundle.path, max_batch=3) as served:
        times = served.worker.sampler._deadlines.times
        assert served.ask("sample", {"n": 2, "seed": 1}).status == 200
        assert times == {}, "clients who ask in turns do not wait for it"
        monkeypatch.setattr("engine.http.worker.QUIET_S", 0.0)
        assert served.ask("sample", {"n": 2, "seed": 1}).status == 200
        eventually(lambda: not served.worker._unmeasured, "the end of the measuring")
        found = {key[0]: (kept.probes, len(kept.call)) for key, kept in times.items()}
        assert found == dict.fromkeys((1, 2, 3), (0, 10))


def test_a_late_chain_ends_with_what_it_has(sampler: Sampler, known: RunTimes, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    clock = iter([0.0, *(0.004 * i for i in range(1, 40))])  # a look at the clock takes 4 ms
    monkeypatch.setattr("engine.deadline.perf_counter", lambda: next(clock))
    batch = sampler.sample(1, seed=4, budget_ms=33.0, anytime=True, callback=lambda info: seen.append(info.x0.copy()))
    assert batch.deadline is not None
    assert (batch.deadline.calls, batch.deadline.done) == (5, 5)
    clock = iter([0.0, *(0.012 * i for i in range(1, 40))])
    seen.clear()
    late = sampler.sample(1, seed=4, budget_ms=33.0, anytime=True, callback=lambda info: seen.append(info.x0.copy()))
    assert late.deadline is not None
    assert (late.deadline.calls, late.deadline.done) == (5, 2)
    np.testing.assert_array_equal(late.x, seen[1])
    assert late.images.tobytes() != batch.images.tobytes()
    assert len(known.multiple) == 101, "a run that was cut short says nothing of a whole one"


def test_what_was_done_is_what_every_sample_had(sampler: Sampler, known: RunTimes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler._pipeline, "max_batch", 1)
    sampler._deadlines.times[2, 1, None, False] = known
    clock = iter([0.0, *(0.004 * i for i in range(1, 40))])
    monkeypatch.setattr("engine.deadline.perf_counter", lambda: next(clock))
    late = sampler.sample(2, seed=4, budget_ms=33.0, anytime=True)  # the second chunk begins at 20 ms
    assert late.deadline is not None
    assert (late.deadline.calls, late.deadline.done) == (5, 3)


def test_clones_share_the_times(sampler: Sampler, known: RunTimes) -> None:
    with sampler.clone() as twin:
        twin.sample(1, budget_ms=1e6)
    assert len(known.multiple) == 101


def test_a_callback_still_stops_a_run(sampler: Sampler, known: RunTimes) -> None:
    from engine import Cancelled

    def stop(info: StepInfo) -> bool:
        return info.step == 1

    with pytest.raises(Cancelled):
        sampler.sample(1, budget_ms=1e6, anytime=True, callback=stop)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget_ms": 0}, "budget_ms is 0; expected milliseconds above 0"),
        ({"budget_ms": -1.0}, r"budget_ms is -1\.0; expected"),
        ({"budget_ms": float("nan")}, "budget_ms is nan; expected"),
        ({"budget_ms": "12"}, r"budget_ms is '12', a str; expected a number"),
        ({"budget_ms": 9, "steps": 3}, "chooses the setting, but steps is given"),
        ({"budget_ms": 9, "setting": "plain"}, "chooses the setting, but setting 'plain' is given"),
        ({"at_most": True}, "at_most is given without a budget"),
        ({"anytime": True}, "anytime is given without a budget"),
    ],
)
def test_bad_budgets(sampler: Sampler, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        sampler.sample(1, **options)


def test_a_bundle_without_fitted_settings(tmp_path: Path) -> None:
    with (
        Sampler(toy.build_bundle(tmp_path / "a.bundle"), ANY_BACKEND, "f32", threads=1) as plain,
        pytest.raises(ArgumentError, match=r"this one has none; expected some: .*fit.setting"),
    ):
        plain.sample(1, budget_ms=10)


def test_a_budget_is_milliseconds() -> None:
    assert Budget.of(None, False, False) is None
    assert Budget.of(12, False, True) == Budget(12.0, anytime=True)


def test_the_command_line(sampler: Sampler, tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        command = ["sample", str(sampler.bundle.path), "--seed", "4", "--out", str(tmp_path / "a.npy"), *arguments]
        return CliRunner().invoke(cli, command)

    told = json.loads(run("--budget-ms", "100000", "--json").stdout)
    assert told["timesteps"] == CHAINS[5]
    assert told["deadline"]["kept"] is True
    assert (told["deadline"]["calls"], told["deadline"]["budget_ms"]) == (5, 100000.0)
    assert "100000 ms, kept: " in run("--budget-ms", "100000").stdout
    refused = run("--budget-ms", "0.0001")
    assert (refused.exit_code, "no fitted setting keeps here" in refused.output) == (1, True)
    assert "beside it" in run("--anytime").output
    assert "leave it out" in run("--budget-ms", "9", "--shard-size", "4").output
