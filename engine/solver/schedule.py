"""Which noise level belongs to which timestep, and which timesteps does a short chain keep?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import ArgumentError, did_you_mean

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

RECIPES = ("linear",)


@dataclass(frozen=True)
class Schedule:
    """The forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), t = 0 .. T - 1 (DDPM eq. 4).

    Raises ArgumentError for betas outside (0, 1), T < 1 or an unknown recipe.
    """

    beta_1: float
    beta_T: float
    T: int
    recipe: str = "linear"

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ArgumentError(
                f"recipe is {self.recipe!r}; expected one of {', '.join(RECIPES)}.{did_you_mean(self.recipe, RECIPES)}"
            )
        if self.T < 1:
            raise ArgumentError(f"T is {self.T}; expected 1 or more timesteps")
        for name, beta in (("beta_1", self.beta_1), ("beta_T", self.beta_T)):
            if not 0 < beta < 1:
                raise ArgumentError(f"{name} is {beta}; expected a variance in (0, 1)")

    @cached_property
    def betas(self) -> F64:
        """beta_t, float64 [T].

        Trained networks saw the float32 values of torch.linspace, which counts from both ends with fused
        multiply-adds: here products and sums are exact in float64 and rounded once.
        """
        first, last = np.float32(self.beta_1), np.float32(self.beta_T)
        step = float((last - first) / np.float32(max(1, self.T - 1)))
        index = np.arange(self.T)
        rising = (float(first) + step * index).astype(np.float32)
        falling = (float(last) - step * (self.T - 1 - index)).astype(np.float32)
        betas = np.where(index < max(1, self.T // 2), rising, falling).astype(np.float64)
        return _frozen(betas)

    @cached_property
    def alpha_bar(self) -> F64:
        """Product of 1 - beta up to and including t, float64 [T], falling."""
        return _frozen(np.cumprod(1.0 - self.betas))


def _frozen(array: NDArray[Any]) -> F64:
    array.setflags(write=False)
    return array


def _uniform(T: int, steps: int, t_start: int | None) -> I64:
    """range(0, T, i) for the smallest stride i that keeps exactly `steps`, as the reference."""
    if t_start is not None:
        raise ArgumentError(
            "spacing='uniform' counts from 0 in whole strides and would miss t_start: use spacing='linspace' or 'quad'"
        )
    # ceil(T / i) timesteps at stride i < T; T = 1 has the single one.
    stride = next((i for i in range(1, max(2, T)) if -(-T // i) == steps), None)
    if stride is None:
        raise ArgumentError(_uniform_counts(T, steps))
    return np.arange(0, T, stride, dtype=np.int64)


def _uniform_counts(T: int, steps: int) -> str:
    counts = sorted({-(-T // i) for i in range(1, max(2, T))})
    near = [count for count in counts if count < steps][-1:] + [count for count in counts if count > steps][:1]
    run = next((i for i, count in enumerate(counts) if count != counts[0] + i), len(counts))  # without a gap
    there = f"{counts[0]} to {counts[run - 1]}" if run > 1 else f"{counts[0]}"
    if counts[run:]:
        there += f", {counts[run]}, ..., {', '.join(map(str, counts[-3:]))}" if len(counts) > run + 4 else (
            f", {', '.join(map(str, counts[run:]))}")
    return (
        f"steps is {steps}, which no whole stride gives: uniform spacing over T={T} exists for {there}; nearest to "
        f"{steps}: {' and '.join(map(str, near))}; or use spacing='linspace', which takes any count"
    )


def _quad(T: int, steps: int, t_start: int | None) -> I64:
    """Squares of evenly spaced numbers, dense near 0; the reference ends at 0.8 T. Duplicates are kept once."""
    if steps == 1:
        if t_start is None:
            raise ArgumentError("steps is 1, which quad spacing would spend at t = 0: use spacing='linspace' or t_start=")
        return np.array([t_start], np.int64)
    end = T * 0.8 if t_start is None else float(t_start)
    kept = (np.linspace(0, np.sqrt(end), steps) ** 2).astype(np.int64)
    if t_start is not None:
        kept[-1] = t_start  # sqrt(t_start)**2 may fall just short of it
    return np.unique(kept)


def _linspace(T: int, steps: int, t_start: int | None) -> I64:
    """Evenly from 0 to the start, rounded half up, any count; a single step is the start itself."""
    last = T - 1 if t_start is None else t_start
    if steps == 1:
        return np.array([last], np.int64)
    return (2 * last * np.arange(steps, dtype=np.int64) + steps - 1) // (2 * (steps - 1))


def _trailing(T: int, steps: int, t_start: int | None) -> I64:
    """Evenly from the start down to one stride above 0, any count: no network call is spent at t = 0, where x is clean."""
    count = T if t_start is None else t_start + 1
    return (2 * count * np.arange(1, steps + 1, dtype=np.int64) + steps) // (2 * steps) - 1


def _truncated(T: int, steps: int, t_start: int | None) -> I64:
    """The last `steps` timesteps of the full chain, steps - 1 .. 0."""
    if t_start not in (None, steps - 1):
        raise ArgumentError(
            f"spacing='truncated' with {steps} steps starts at t = {steps - 1}, but t_start is {t_start}: "
            f"pass steps={t_start + 1 if t_start is not None else steps}, leave t_start out, or use spacing='linspace'"
        )
    return np.arange(steps, dtype=np.int64)


SPACINGS: dict[str, Callable[[int, int, int | None], I64]] = {
    "uniform": _uniform,
    "quad": _quad,
    "linspace": _linspace,
    "trailing": _trailing,
    "truncated": _truncated,
}


def kept_timesteps(T: int, steps: int, spacing: str, t_start: int | None = None) -> I64:
    """The original timesteps that a chain keeps, ascending, int64; with t_start the last one is t_start.

    Up to `steps` of them: quad spacing merges duplicates at its dense end. Raises ArgumentError saying what can be had.
    """
    if spacing not in SPACINGS:
        raise ArgumentError(
            f"spacing is {spacing!r}; expected one of {', '.join(SPACINGS)}.{did_you_mean(spacing, SPACINGS)}"
        )
    if t_start is not None and not 0 <= t_start < T:
        raise ArgumentError(f"t_start is {t_start}; expected a timestep in 0 .. {T - 1}, e.g. {round(0.45 * T)}")
    available = T if t_start is None else t_start + 1
    if not 1 <= steps <= available:
        what = f"T = {T}" if t_start is None else f"t_start = {t_start}"
        raise ArgumentError(f"steps is {steps}; expected 1 .. {available}, the timesteps there are with {what}")
    return SPACINGS[spacing](T, steps, t_start)


def default_spacing(t_start: int | None) -> str:
    """uniform, as the reference; linspace where a chain starts at t_start."""
    return "uniform" if t_start is None else "linspace"


def check_integer(name: str, value: object) -> int:
    """Refuses what is not a whole number (True and 3.0 included)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected an integer")
    return int(value)


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Refuses what is not a finite number in low .. high."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected a number")
    if not (math.isfinite(value) and low <= value <= high):
        wanted = f"in {low:g} .. {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise ArgumentError(f"{name} is {value}; expected a number {wanted}")
    return float(value)
