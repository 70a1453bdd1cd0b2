"""Noise levels of the trained timesteps, and the timesteps that a short chain keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.argument_checks import check_integer, check_number
from engine.errors import ArgumentError, did_you_mean

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


# --- Noise levels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Schedule:
    """The forward process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), t = 0 .. T - 1 (DDPM eq. 4).

    betas: variances of the single steps, float64 [T]. Raises ArgumentError for none, or one outside (0, 1).
    """

    betas: F64

    def __post_init__(self) -> None:
        betas = np.array(self.betas, np.float64)
        if betas.ndim != 1 or not betas.size:
            raise ArgumentError(f"betas has shape {list(betas.shape)}; expected [T], T > 0")
        outside = np.flatnonzero(~((betas > 0) & (betas < 1)))
        if outside.size:
            t = int(outside[0])
            raise ArgumentError(f"betas[{t}] is {betas[t]}; expected a variance in (0, 1)")
        object.__setattr__(self, "betas", _frozen(betas))

    @classmethod
    def from_recipe(cls, recipe: str, T: int, *, betas: Sequence[float] | None = None, **numbers: float) -> Schedule:
        """The schedule of a recipe (RECIPES) and its numbers: `start` and `end`, or `s` and `max_beta`, or `betas`."""
        if recipe not in RECIPES:
            raise ArgumentError(
                f"recipe is {recipe!r}; expected one of {', '.join(RECIPES)}.{did_you_mean(recipe, RECIPES)}"
            )
        T = check_integer("T", T)
        if T < 1:
            raise ArgumentError(f"T is {T}; expected 1 or more timesteps")
        make, names = RECIPES[recipe]
        given = [name for name, value in (*numbers.items(), ("betas", betas)) if value is not None]
        if sorted(given) != sorted(names):
            raise ArgumentError(
                f"recipe {recipe!r} was given {', '.join(given) or 'no numbers'}; expected {', '.join(names)}, exactly these"
            )
        for name, value in numbers.items():
            check_number(name, value, *LIMITS[name])
        return cls(make(T, *((betas if name == "betas" else numbers[name]) for name in names)))

    @property
    def T(self) -> int:
        """Trained timesteps."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> F64:
        """Product of 1 - beta up to and including t, float64 [T], falling."""
        return _frozen(np.cumprod(1.0 - self.betas))


def _linear(T: int, start: float, end: float) -> F64:
    """Betas evenly from start to end (DDPM section 4), as float32 values.

    Trained networks saw those of torch.linspace, which counts from both ends with fused multiply-adds: here products
    and sums are exact in float64 and rounded once.
    """
    first, last = np.float32(start), np.float32(end)
    step = float((last - first) / np.float32(max(1, T - 1)))
    index = np.arange(T)
    rising = (float(first) + step * index).astype(np.float32)
    falling = (float(last) - step * (T - 1 - index)).astype(np.float32)
    return np.where(index < max(1, T // 2), rising, falling).astype(np.float64)


def _scaled_linear(T: int, start: float, end: float) -> F64:
    """Square roots of the betas evenly from start to end: what latent diffusion calls linear."""
    return np.linspace(math.sqrt(start), math.sqrt(end), T) ** 2


def _cosine(T: int, s: float, max_beta: float) -> F64:
    """alpha_bar falls as a squared cosine (Nichol & Dhariwal 2021, eq. 17):

        f(t) = cos((t / T + s) / (1 + s) pi / 2)^2,   beta_t = min(1 - f(t + 1) / f(t), max_beta)
    """
    angles = (np.arange(T + 1) / T + s) / (1.0 + s) * (math.pi / 2.0)
    # The C library's cosine, as in C++: numpy's own differs in the last bit from one processor to another.
    f = np.array([math.cos(angle) for angle in angles.tolist()]) ** 2
    return np.minimum(1.0 - f[1:] / f[:-1], max_beta)


def _table(T: int, betas: Sequence[float]) -> F64:
    """The betas themselves."""
    found = np.array(betas, np.float64)
    if found.shape != (T,):
        raise ArgumentError(f"betas has shape {list(found.shape)}; expected [{T}], one for each of T timesteps")
    return found


RECIPES: dict[str, tuple[Callable[..., F64], tuple[str, ...]]] = {
    "linear": (_linear, ("start", "end")),
    "scaled_linear": (_scaled_linear, ("start", "end")),
    "cosine": (_cosine, ("s", "max_beta")),
    "table": (_table, ("betas",)),
}
LIMITS = {"start": (0.0, 1.0), "end": (0.0, 1.0), "s": (0.0, 1.0), "max_beta": (0.0, 1.0)}


def _frozen(array: NDArray[Any]) -> F64:
    array.setflags(write=False)
    return array


# --- Which timesteps --------------------------------------------------------------------------------------------------


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
