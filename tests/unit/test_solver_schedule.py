"""Noise schedules: every recipe's betas, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from engine.errors import ArgumentError
from engine.solver.schedule import RECIPES, Schedule
from engine.solver.table import build_step_table


@pytest.mark.parametrize(("start", "end", "T"), [(1e-4, 0.02, 1), (1e-4, 0.02, 2), (1e-4, 0.02, 7), (8e-4, 0.012, 999)])
def test_linear_runs_from_start_to_end_in_float32(start, end, T):
    schedule = Schedule.from_recipe("linear", T, start=start, end=end)
    assert schedule.T == T
    assert schedule.betas[0] == np.float32(start)
    assert T == 1 or schedule.betas[-1] == np.float32(end)
    assert np.array_equal(schedule.betas, schedule.betas.astype(np.float32))
    np.testing.assert_allclose(schedule.betas, np.linspace(start, end, T), rtol=2e-7)
    assert schedule.alpha_bar[-1] == pytest.approx(math.prod(1 - beta for beta in schedule.betas.tolist()), rel=1e-12)
    assert len(build_step_table(schedule, steps=T, spacing="linspace")) == T


def test_linear_is_pinned():
    """Bits of torch.linspace(1e-4, 0.02, 1000), float32: the images of every bundle so far hang on them."""
    betas = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02).betas.astype(np.float32)
    assert betas[[0, 1, 499, 500, 998, 999]].view(np.uint32).tolist() == [
        0x38D1B717, 0x38FB7D84, 0x3C247EFB, 0x3C24D287, 0x3CA3AD44, 0x3CA3D70A,
    ]  # fmt: skip


def test_scaled_linear_is_even_in_the_square_root():
    betas = Schedule.from_recipe("scaled_linear", 1000, start=0.0015, end=0.0195).betas
    assert betas.dtype == np.float64
    assert betas[0] == pytest.approx(0.0015, rel=1e-15)
    assert betas[-1] == pytest.approx(0.0195, rel=1e-15)
    steps = np.diff(np.sqrt(betas))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-10)


def test_cosine_is_the_squared_cosine_until_its_betas_are_limited():
    T, s = 1000, 0.008
    schedule = Schedule.from_recipe("cosine", T, s=s, max_beta=0.999)
    t = np.arange(1, T + 1)
    f = np.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bar[:-1], f[:-1], rtol=1e-9)
    assert schedule.betas[-1] == 0.999
    assert (np.diff(schedule.betas) >= 0).all()


def test_table_is_taken_as_it_is():
    betas = [0.1, 0.30000000000000004, 0.2]
    schedule = Schedule.from_recipe("table", 3, betas=betas)
    assert schedule.betas.tolist() == betas
    exact = Fraction(1)
    for t, beta in enumerate(betas):
        exact *= 1 - Fraction(beta)
        assert schedule.alpha_bar[t] == pytest.approx(float(exact), rel=1e-15)


def test_betas_and_alpha_bar_are_not_to_be_written_to():
    mine = np.full(4, 0.1)
    schedule = Schedule(mine)
    mine[:] = 0.5
    assert schedule.betas.tolist() == [0.1] * 4, "a copy"
    for array in (schedule.betas, schedule.alpha_bar):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("recipe", "T", "numbers", "message"),
    [
        ("linear", 10, {"start": 0.0, "end": 0.02}, r"betas\[0\] is 0.0; expected a variance in \(0, 1\)"),
        ("linear", 10, {"start": 1e-4, "end": 1.0}, r"betas\[9\] is 1.0; expected"),
        ("linear", 10, {"start": 1e-4, "end": math.nan}, "end is nan; expected a number in 0 .. 1"),
        ("linear", 10, {"start": -1.0, "end": 0.1}, "start is -1.0; expected a number in 0 .. 1"),
        ("linear", 10, {"start": "1", "end": 0.1}, "start is '1', a str; expected a number"),
        ("linear", 0, {"start": 1e-4, "end": 0.02}, "T is 0; expected 1 or more"),
        ("linear", 10.0, {"start": 1e-4, "end": 0.02}, "T is 10.0, a float; expected an integer"),
        ("linear", 10, {"start": 1e-4}, "'linear' was given start; expected start, end, exactly these"),
        ("linear", 10, {"start": 1e-4, "end": 0.02, "s": 0.1}, "given start, end, s; expected start, end"),
        ("cosine", 10, {}, "'cosine' was given no numbers; expected s, max_beta"),
        ("cosine", 10, {"s": 0.008, "max_beta": 1.0}, r"betas\[9\] is 1.0; expected"),
        ("table", 3, {"betas": [0.1, 0.2]}, r"betas has shape \[2\]; expected \[3\], one for each of T timesteps"),
        ("table", 2, {"betas": [0.1, 1.5]}, r"betas\[1\] is 1.5; expected a variance in \(0, 1\)"),
        ("table", 2, {"betas": [0.1, math.nan]}, r"betas\[1\] is nan; expected"),
        ("linaer", 10, {}, "recipe is 'linaer'; expected one of linear, .* Did you mean 'linear'"),
    ],
)
def test_what_is_no_schedule_is_refused(recipe, T, numbers, message):
    with pytest.raises(ArgumentError, match=message):
        Schedule.from_recipe(recipe, T, **numbers)


def test_betas_of_no_length_are_refused():
    for betas in (np.zeros((2, 2)), np.zeros(0)):
        with pytest.raises(ArgumentError, match=r"betas has shape .*; expected \[T\], T > 0"):
            Schedule(betas)
    assert list(RECIPES) == ["linear", "scaled_linear", "cosine", "table"]
