"""Fitted settings and budgets of time through Triton: what the Sampler means by them, with the clock of the request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from engine.deadline import RunTimes
from engine.result import Timings
from engine.triton.answers import Answer
from tests import toy
from tests.fake_triton import Request, TritonError
from tests.samplers import CountingGraph, watch_graph
from tests.triton_models import CHOSEN, Served, floats, int32, ints, loading, same, texts

CHAINS = {5: [400, 244, 111, 38, 9], 3: [400, 150, 25], 1: [300]}
PROMISE = ("calls", "took_ms", "kept")


def flags(*values: bool) -> np.ndarray:
    return np.array(values, np.bool_)[:, None]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = toy.build_bundle(tmp_path_factory.mktemp("budgets") / "toy.bundle", defaults={"steps": 5, "spacing": "trailing"})
    write_fitted(path, [as_defaults({"timesteps": chain, "t_start": chain[0]}) for chain in CHAINS.values()], {})
    return path


@pytest.fixture(scope="module")
def loaded(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with loading(tmp_path_factory.mktemp("served")) as start:
        yield start(path)


@pytest.fixture
def model(loaded: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """A model for which n images have always taken n ms and 2 n ms a call, and whose clock stands still."""
    for n in (1, 2, 3):
        times = RunTimes()
        times.add(5, Timings(first_step_ms=2.0 * n, other_steps_ms=[2.0 * n] * 4, total_ms=11.0 * n))
        monkeypatch.setitem(loaded.sampler._deadlines.times, (n, 1, None, False), times)
    monkeypatch.setattr(RunTimes, "add", lambda *_: None)
    monkeypatch.setattr(Answer, "passed_ms", lambda answer: 1.0)
    return loaded


def told(response: Any) -> tuple[Any, ...]:
    arrays = response.arrays()
    return tuple(arrays[name][:, 0].tolist() for name in PROMISE)


def test_every_size_is_measured_at_load_where_clients_may_send_budgets(path: Path, tmp_path: Path) -> None:
    seed = {"name": "seed", "data_type": "TYPE_INT64", "dims": [1]}
    budget = {"name": "budget_ms", "data_type": "TYPE_FP32", "dims": [1]}
    with loading(tmp_path) as start:
        measured = start(path, CHOSEN, input=[seed, budget])
        assert set(measured.sampler._deadlines.times) == {(n, 1, None, False) for n in range(1, 9)}
        assert "measured batches of 1 .. 8 for budgets" in measured.server.Logger.lines[0]
        assert start(path, CHOSEN, input=[seed]).sampler._deadlines.times == {}
        began = perf_counter()
        response = measured.answer(Request(PROMISE, seed=ints(1), budget_ms=floats(1e6)))[0]
        assert 0 < told(response)[1][0] <= 1e3 * (perf_counter() - began)


@pytest.mark.parametrize(
    ("asked", "means"),
    [
        ({"steps": int32(3)}, {"steps": 3}),
        ({}, {}),
        ({"steps": int32(3), "setting": texts("fitted")}, {"steps": 3, "setting": "fitted"}),
        ({"steps": int32(3), "setting": texts("plain")}, {"steps": 3, "setting": "plain"}),
        ({"setting": texts("plain"), "temperature": floats(0.5)}, {"setting": "plain", "temperature": 0.5}),
        ({"budget_ms": floats(1e6), "temperature": floats(0.5)}, {"steps": 5, "temperature": 0.5}),
        ({"budget_ms": floats(8.0)}, {"steps": 3}),
    ],
)
def test_which_setting_is_meant(model: Served, asked: dict[str, np.ndarray], means: dict[str, Any]) -> None:
    same(model.one(seed=ints(7), **asked), model.sampler.sample(seed=7, **means))


def test_what_was_chosen_and_kept_is_told_to_those_who_ask(model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Request(PROMISE, seed=ints(1, 2), budget_ms=floats(13.5, 100.0))
    assert told(model.answer(asked)[0]) == ([5, 5], [1.0, 1.0], [True, True])
    monkeypatch.setattr(Answer, "passed_ms", lambda answer: 9.0)
    late = Request(PROMISE, seed=ints(1, 2), budget_ms=floats(8.0, 12.5), at_most=flags(True, False))
    assert told(model.answer(late)[0]) == ([1, 1], [9.0, 9.0], [False, True])
    assert list(model.answer(Request(["kept"], seed=ints(1), budget_ms=floats(90.0)))[0].arrays()) == ["kept"]
    unasked = Request(["image", *PROMISE], seed=ints(1))  # as a client's that names no outputs
    assert list(model.answer(unasked)[0].arrays()) == ["image"]


def test_equal_budgets_run_together_and_the_tightest_are_answered_first(model: Served) -> None:
    counting: CountingGraph = watch_graph(model.sampler)
    sent: list[float] = []

    class Noted(Request):
        def send(self, response: Any, flags: int) -> None:
            sent.append(float(self.inputs()[1].as_numpy()[0, 0]))
            super().send(response, flags)

    requests = [Noted(["calls"], seed=ints(i), budget_ms=floats(ms)) for i, ms in enumerate((99.0, 8.0, 99.0))]
    found = [response.arrays()["calls"].tolist() for response in model.answer(*requests)]
    assert found == [[[5]], [[3]], [[5]]]
    assert counting.batches == [1] * 3 + [2] * 5
    assert sent == [8.0, 99.0, 99.0]


def test_a_budget_that_nothing_keeps_costs_only_its_own_request(model: Served) -> None:
    requests, runs, budgets = (family.metrics for family in model.model._metrics._families)
    before = {labels[-1]: metric.value for labels, metric in (requests | budgets).items()}
    tight = Request(seed=ints(1), budget_ms=floats(3.5))
    most = Request(PROMISE, seed=ints(2), budget_ms=floats(0.5), at_most=flags(True))
    loose = Request(PROMISE, seed=ints(3), budget_ms=floats(100.0), at_most=flags(False))
    refused, fastest, best = model.answer(tight, most, loose)
    code, text = refused.refusal()
    assert code == TritonError.UNAVAILABLE
    assert "budget_ms is 2.5, which no fitted setting keeps here: found 1 call for 1 image in 3 ms" in text
    assert text.endswith("(Of 3.5 ms 1 had passed before the run.)")
    assert told(fastest) == ([1], [1.0], [False])
    assert told(best) == ([5], [1.0], [True])
    grown = {labels[-1]: metric.value - before[labels[-1]] for labels, metric in (requests | budgets).items()}
    assert grown == {"ok": 2, "late": 1, "refused": 0, "cancelled": 0, "failed": 0, "kept": 1, "missed": 1}
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"setting": texts("fited")}, "setting is 'fited'; expected one of fitted, plain. Did you mean 'fitted'"),
        ({"setting": texts("fitted"), "steps": int32(4)}, "has none of 4 steps; expected one of those it has: 1, 3, 5"),
        ({"budget_ms": floats(0)}, "budget_ms is 0; expected milliseconds above 0"),
        ({"budget_ms": floats(np.nan)}, "budget_ms is nan; expected"),
        ({"budget_ms": floats(9), "steps": int32(3)}, "chooses the setting, but steps is given"),
        ({"budget_ms": floats(9), "setting": texts("plain")}, "chooses the setting, but setting 'plain' is given"),
        ({"budget_ms": floats(9), "temperature": floats(-1)}, "temperature is -1.0; expected"),
        ({"at_most": flags(True)}, "at_most is given without a budget"),
        ({"at_most": int32(1)}, "at_most is int32 [1, 1]; expected BOOL [1, 1]"),
    ],
)
def test_bad_requests_fail_alone(model: Served, inputs: dict[str, np.ndarray], message: str) -> None:
    bad, good = model.answer(Request(seed=ints(1), **inputs), Request(["calls"], seed=ints(1), budget_ms=floats(99)))
    code, text = bad.refusal()
    assert (code, message in text) == (TritonError.INVALID_ARG, True), text
    assert good.arrays()["calls"].tolist() == [[5]]
