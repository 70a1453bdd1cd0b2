"""Budgets of time and previews in C++: the rule, the refusals and the pixels of Python."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import DeadlineError, EngineError, Sampler
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from engine.deadline import WINDOW, RunTimes
from engine.result import Timings
from tests.cpp import building, capi
from tests.cpp.capi import Arguments, CSampler, Failed, Library, looking, open_c
from tests.cpp.changed import changed_bundle
from tests.cpp.test_cpp_steps import plain
from tests.native_models import NEEDS_NATIVE

CHAINS = {5: [400, 244, 111, 38, 9], 10: [900, 800, 700, 600, 500, 400, 300, 200, 100, 10], 2: [400, 25]}  # the best first


def test_run_times_are_booked_as_in_python() -> None:
    rng = np.random.default_rng(4)
    noises = rng.lognormal(0, 0.5, WINDOW + 40).tolist()
    loops = [(calls, 3.0 * calls * noise) for calls, noise in zip([1, 3, 5, 10] * 138, noises, strict=True)]
    runs = [(calls, loop, loop + 1.5) for calls, loop in loops]
    program = building.build("quotas", source=Path(__file__).parent / "quotas") / "run_times"
    lines = "".join(f"{calls} {loop!r} {total!r}\n" for calls, loop, total in runs)
    answers = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    times, expected = RunTimes(), []
    for calls, loop, total in runs:
        times.add(calls, Timings(first_step_ms=loop, total_ms=total))
        expected.append([number for asked in (1, 3, 10) for number in (times.usual(asked), times.kept(asked))])
    assert [[float(number) for number in line.split()] for line in answers] == expected


@pytest.fixture(scope="module")
def path(native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = changed_bundle(native_bundle("form1"), tmp_path_factory.mktemp("deadline") / "fitted.bundle", {})
    write_fitted(path, [as_defaults({"timesteps": chain, "t_start": chain[0]}) for chain in CHAINS.values()], {})
    return path


@pytest.fixture(scope="module")
def sampler(library: Library, path: Path) -> Iterator[CSampler]:
    with open_c(library, path, max_batch=2) as opened:
        yield opened


@NEEDS_NATIVE
def test_the_best_setting_that_keeps_the_budget(sampler: CSampler) -> None:
    assert sampler.info.fitted[: sampler.info.fitted_count] == list(CHAINS)
    for options, calls in (({"budget_ms": 1e9}, 5), ({"budget_ms": 1e-9, "at_most": True}, 2)):
        seen: list[int] = []
        found = sampler.sample(3, seed=4, callback=looking(lambda step, seen=seen: seen.append(step.step)), **options)
        assert seen == [*range(calls)] * 2, "the measured runs are not the caller's"
        np.testing.assert_array_equal(found.images, sampler.sample(3, seed=4, steps=calls).images)
        assert found.timesteps.tolist() == CHAINS[calls]
        told = found.deadline
        assert (told.budget_ms, told.calls, told.done, told.kept) == (options["budget_ms"], calls, calls, int(calls == 5))
        assert 0 < told.expected_ms < 1e9
        assert found.timings.total_ms <= told.took_ms
    assert sampler.sample(3, seed=4).deadline.budget_ms == capi.UNSET_NUMBER


@NEEDS_NATIVE
def test_a_budget_that_nothing_keeps(sampler: CSampler, path: Path) -> None:
    def refusal(asked: CSampler) -> str:
        with pytest.raises(Failed) as caught:
            asked.sample(1, budget_ms=1e-9)
        assert caught.value.status == capi.DEADLINE
        return str(caught.value)

    first = refusal(sampler)
    with sampler.clone() as twin:
        assert refusal(twin) == first, "clones share what was measured"
    with Sampler(path, "native", threads=1) as python, pytest.raises(DeadlineError) as ours:
        python.sample(1, budget_ms=1e-9)
    measured = re.compile(r"in [0-9.e+]+ ms|of them in [0-9.e+]+")
    assert measured.sub("", first) == measured.sub("", f"DEADLINE: {ours.value}")


@NEEDS_NATIVE
def test_a_late_chain_ends_with_what_it_has(sampler: CSampler) -> None:
    shown: list[tuple[np.ndarray, np.ndarray]] = []

    def look(step: capi.Step) -> None:
        shown.append((sampler.seen(step)[1], sampler.preview(step)))
        time.sleep(0.2)

    sampler.sample(1, budget_ms=1e9)  # measured
    late = sampler.sample(1, seed=4, budget_ms=300.0, anytime=True, callback=looking(look))
    assert (late.deadline.calls, late.deadline.done, len(shown)) == (5, 2, 2)
    np.testing.assert_array_equal(late.x, shown[1][0])
    np.testing.assert_array_equal(late.images, shown[1][1])
    assert late.images.tobytes() != sampler.sample(1, seed=4, steps=5).images.tobytes()


@NEEDS_NATIVE
def test_previews_are_those_of_python_and_change_nothing(sampler: CSampler, path: Path) -> None:
    found: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    batch = sampler.sample(3, seed=4, steps=5, callback=looking(lambda step: found.append(sampler.preview(step))))
    with Sampler(path, "native", threads=2, max_batch=2) as python:
        whole = python.sample(3, seed=4, steps=5, callback=lambda info: expected.append(info.images()))
    np.testing.assert_array_equal(batch.images, sampler.sample(3, seed=4, steps=5).images)
    np.testing.assert_array_equal(batch.images, whole.images)
    assert [len(images) for images in found] == [2] * 5 + [1] * 5
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found[4], batch.images[:2])
    with pytest.raises(Failed, match="while no callback of this sampler is looking at a step"):
        sampler.preview(capi.Step(n=1))


REFUSED: tuple[Arguments, ...] = (
    {"budget_ms": 0.0}, {"budget_ms": -1.0}, {"budget_ms": float("nan")}, {"budget_ms": float("inf")},
    {"budget_ms": 9.0, "steps": 3}, {"budget_ms": 9.0, "eta": [1.0], "t_start": 9}, {"budget_ms": 9.0, "timesteps": [9, 1]},
    {"budget_ms": 9.0, "setting": "plain"}, {"budget_ms": 9.0, "setting": "fited"}, {"budget_ms": 9.0, "temperature": -1.0},
    {"at_most": True}, {"anytime": True}, {"at_most": True, "anytime": True},
    {"setting": "fited"}, {"setting": "fitted", "steps": 4}, {"setting": "fitted", "steps": 5, "rho": 3.0},
    {"setting": "fitted", "eta": 1.0}, {"setting": "fitted", "timesteps": [9, 1]}, {"setting": "fitted", "t_start": 9},
    {"steps": 5, "setting": "fitted", "noise_scale": [1.0]}, {"method": "unipc_2", "eta": 0.5, "steps": 3},
)  # fmt: skip


def words(error: Exception) -> str:
    """A refusal apart from how a number, and the command that fits settings, are written."""
    return plain(re.sub(r"[^ ]*(diffusevae|python).*fit.setting.*", "", str(error)).removeprefix("ARGUMENT: "))


@NEEDS_NATIVE
def test_refusals_are_those_of_python(sampler: CSampler, path: Path, native_bundle: Callable[..., Path]) -> None:
    with Sampler(path, "native", threads=1) as python:
        assert_same_refusals(sampler, python, REFUSED)
    with (
        Sampler(native_bundle("form1"), "native", threads=1) as python,
        open_c(sampler.library, native_bundle("form1")) as bare,
    ):
        assert_same_refusals(bare, python, ({"budget_ms": 9.0}, {"setting": "fitted", "steps": 3}))
    with pytest.raises(Failed, match="expected none for a step table"):
        sampler.table(budget_ms=9.0)


def assert_same_refusals(sampler: CSampler, python: Sampler, asked: tuple[Arguments, ...]) -> None:
    for options in asked:
        with pytest.raises(EngineError) as ours:
            python.sample(1, **options)
        with pytest.raises(Failed) as theirs:
            sampler.sample(1, **options)
        assert theirs.value.status == capi.ARGUMENT, options
        assert words(theirs.value) == words(ours.value), options

