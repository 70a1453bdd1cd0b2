"""The timesteps that a short chain keeps: by a rule (SPACINGS), or one by one as the caller lists them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from engine.errors import ArgumentError, did_you_mean
from engine.solver.schedule import F64, I64, log_ratio

RHO = 7.0  # that of Karras et al. 2022
LEAST_RHO, MOST_RHO = 1.0, 100.0


class Wanted(NamedTuple):
    """What a spacing chooses from: alpha_bar of every trained timestep, how many to keep, and where to start."""

    alpha_bar: F64
    steps: int
    t_start: int | None
    rho: float

    @property
    def T(self) -> int:
        """Trained timesteps."""
        return len(self.alpha_bar)

    @property
    def last(self) -> int:
        """The noisiest timestep that can be kept."""
        return self.T - 1 if self.t_start is None else self.t_start


def _uniform(wanted: Wanted) -> I64:
    """range(0, T, i) for the smallest stride i that keeps exactly `steps`, as the reference."""
    T, steps = wanted.T, wanted.steps
    if wanted.t_start is not None:
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


def _quad(wanted: Wanted) -> I64:
    """Squares of evenly spaced numbers, dense near 0; the reference ends at 0.8 T. Duplicates are kept once."""
    t_start = wanted.t_start
    if wanted.steps == 1:
        if t_start is None:
            raise ArgumentError("steps is 1, which quad spacing would spend at t = 0: use spacing='linspace' or t_start=")
        return np.array([t_start], np.int64)
    kept = _squares(wanted.T * 0.8 if t_start is None else float(t_start), wanted.steps)
    if t_start is not None:
        kept[-1] = t_start  # sqrt(t_start)**2 may fall just short of it
    return np.unique(kept)


def _squares(end: float, count: int) -> I64:
    """Squares of evenly spaced numbers from 0 to sqrt(end), rounded down."""
    return (np.linspace(0, np.sqrt(end), count) ** 2).astype(np.int64)


def _linspace(wanted: Wanted) -> I64:
    """Evenly from 0 to the start, rounded half up, any count; a single step is the start itself."""
    steps, last = wanted.steps, wanted.last
    if steps == 1:
        return np.array([last], np.int64)
    return (2 * last * np.arange(steps, dtype=np.int64) + steps - 1) // (2 * (steps - 1))


def _trailing(wanted: Wanted) -> I64:
    """Evenly from the start down to one stride above 0, any count: no network call is spent at t = 0, where x is clean."""
    steps, count = wanted.steps, wanted.last + 1
    return (2 * count * np.arange(1, steps + 1, dtype=np.int64) + steps) // (2 * steps) - 1


def _truncated(wanted: Wanted) -> I64:
    """The last `steps` timesteps of the full chain, steps - 1 .. 0."""
    steps, t_start = wanted.steps, wanted.t_start
    if t_start not in (None, steps - 1):
        raise ArgumentError(
            f"spacing='truncated' with {steps} steps starts at t = {steps - 1}, but t_start is {t_start}: "
            f"pass steps={t_start + 1 if t_start is not None else steps}, leave t_start out, or use spacing='linspace'"
        )
    return np.arange(steps, dtype=np.int64)


def _karras(wanted: Wanted) -> I64:
    """Even in sigma^(1 / rho), sigma = sqrt((1 - a) / a), from the start to t = 0 (Karras et al. 2022, eq. 5), of which the
    last is left out, as by trailing: no network call is spent where x is clean."""
    root = 1.0 / wanted.rho
    first, end = (math.pow(math.exp(-_lambda(wanted.alpha_bar, t)), root) for t in (wanted.last, 0))
    sigmas = (math.pow(first + i / wanted.steps * (end - first), wanted.rho) for i in range(wanted.steps))
    return _nearest(wanted, [-math.log(sigma) for sigma in sigmas])


def _logsnr(wanted: Wanted) -> I64:
    """Even in lambda = log(sqrt(a) / sqrt(1 - a)) from the start to t = 0, of which the last is left out, as by trailing."""
    first, end = (_lambda(wanted.alpha_bar, t) for t in (wanted.last, 0))
    return _nearest(wanted, [first + i / wanted.steps * (end - first) for i in range(wanted.steps)])


def _lambda(alpha_bar: F64, t: int) -> float:
    """lambda of a timestep, finite also where alpha_bar has been rounded to 0 or 1."""
    return log_ratio(min(max(float(alpha_bar[t]), 2.0**-1022), 1.0 - 2.0**-53))


def _nearest(wanted: Wanted, lambdas: Sequence[float]) -> I64:
    """The timesteps nearest in lambda to these, which rise from that of the start; moved apart where two would be one."""
    kept = [_nearest_to(wanted.alpha_bar, value) for value in reversed(lambdas)]
    for i in range(1, len(kept)):
        kept[i] = max(kept[i], kept[i - 1] + 1)
    kept[-1] = wanted.last
    for i in reversed(range(len(kept) - 1)):
        kept[i] = min(kept[i], kept[i + 1] - 1)
    return np.array(kept, np.int64)


def _nearest_to(alpha_bar: F64, value: float) -> int:
    """The timestep whose lambda is nearest to `value`; of two that are as near, the less noisy one."""
    t = bisect_left(range(len(alpha_bar)), -value, key=lambda t: -_lambda(alpha_bar, t))
    if t == len(alpha_bar):
        return t - 1
    return t - 1 if t and _lambda(alpha_bar, t - 1) - value <= value - _lambda(alpha_bar, t) else t


def _leading(wanted: Wanted) -> I64:
    """1, 1 + T // steps, ... up to T: often more than `steps` of them (Lin et al. 2023, arXiv 2305.08891, table 2)."""
    T, steps = wanted.T, wanted.steps
    if not _leads(T, steps):
        below = next((count for count in range(steps - 1, 0, -1) if _leads(T, count)), None)
        above = next((count for count in range(steps + 1, T + 1) if _leads(T, count)), None)
        near = " and ".join(str(count) for count in (below, above) if count is not None)
        raise ArgumentError(
            f"steps is {steps}, with which leading spacing over T={T} would end at t = {T}, beyond the last timestep; "
            + (f"nearest to {steps}: {near}; or " if near else "")
            + "use spacing='linspace', which takes any count"
        )
    return _up_to_start(wanted, np.arange(0, T, T // steps, dtype=np.int64) + 1)


def _leads(T: int, steps: int) -> bool:
    """Whether leading spacing has timesteps below T alone."""
    stride = T // steps
    return (T - 1) // stride * stride + 1 < T


def _leading_quad(wanted: Wanted) -> I64:
    """Squares of evenly spaced numbers up to 0.8 T, rounded down, + 1. Of duplicates one is kept: DDIM's step from a
    timestep to itself changes nothing."""
    if wanted.steps == 1:
        raise ArgumentError("steps is 1, which leading_quad spacing would spend at t = 1: use spacing='linspace'")
    kept = np.unique(_squares(wanted.T * 0.8, wanted.steps)) + 1
    if kept[-1] >= wanted.T:
        raise ArgumentError(
            f"leading_quad spacing over T={wanted.T} would end at t = {kept[-1]}, beyond the last timestep: "
            "use spacing='linspace'"
        )
    return _up_to_start(wanted, kept)


def _up_to_start(wanted: Wanted, grid: I64) -> I64:
    """The timesteps of a grid up to t_start, which is one of them."""
    t_start = wanted.t_start
    if t_start is None:
        return grid
    if t_start not in grid:
        raise ArgumentError(
            f"t_start is {t_start}, which is none of the timesteps of this spacing with {wanted.steps} steps: "
            f"pass t_start={grid[np.abs(grid - t_start).argmin()]}, the nearest, or use spacing='linspace'"
        )
    return grid[grid <= t_start]


SPACINGS: dict[str, Callable[[Wanted], I64]] = {
    "uniform": _uniform,
    "quad": _quad,
    "linspace": _linspace,
    "trailing": _trailing,
    "truncated": _truncated,
    "karras": _karras,
    "logsnr": _logsnr,
    "leading": _leading,
    "leading_quad": _leading_quad,
}
# Their timesteps are one above a grid that begins at 0, where their last step ends, at alpha_bar[0]; those of the others
# end in x0. They are laid over all trained timesteps, and t_start keeps the part of them up to it.
LEADING = ("leading", "leading_quad")


def kept_timesteps(alpha_bar: F64, steps: int, spacing: str, t_start: int | None = None, rho: float = RHO) -> I64:
    """The original timesteps that a chain keeps, ascending, int64; with t_start the last one is t_start.

    Up to `steps` of them, as quad spacings merge duplicates at their dense end; of leading spacing there may be more.
    Raises ArgumentError saying what can be had.
    """
    T = len(alpha_bar)
    if spacing not in SPACINGS:
        raise ArgumentError(
            f"spacing is {spacing!r}; expected one of {', '.join(SPACINGS)}.{did_you_mean(spacing, SPACINGS)}"
        )
    if rho != RHO and spacing != "karras":
        raise ArgumentError(
            f"rho is {rho} with spacing={spacing!r}; only karras takes rho: leave it out or use spacing='karras'"
        )
    if t_start is not None and not 0 <= t_start < T:
        raise ArgumentError(f"t_start is {t_start}; expected a timestep in 0 .. {T - 1}, e.g. {round(0.45 * T)}")
    laid_to = None if spacing in LEADING else t_start
    available = T if laid_to is None else laid_to + 1
    if not 1 <= steps <= available:
        what = f"T = {T}" if laid_to is None else f"t_start = {t_start}"
        raise ArgumentError(f"steps is {steps}; expected 1 .. {available}, the timesteps there are with {what}")
    return SPACINGS[spacing](Wanted(alpha_bar, steps, t_start, rho))


def nearest_start(alpha_bar: F64, steps: int, spacing: str | None, t_start: int) -> int:
    """The start nearest to a timestep that a chain of this spacing can have: of leading ones a timestep of their grid."""
    if spacing not in LEADING:
        return t_start
    grid = kept_timesteps(alpha_bar, steps, spacing)
    return int(grid[np.abs(grid - t_start).argmin()])


def listed_timesteps(listed: Sequence[int], T: int) -> I64:
    """The caller's own timesteps, ascending as of `kept_timesteps`. ArgumentError where they do not fall from T - 1."""
    for i, t in enumerate(listed):
        if not 0 <= t < T:
            raise ArgumentError(f"timesteps[{i}] is {t}; expected a timestep in 0 .. {T - 1}")
        if i and t >= listed[i - 1]:
            raise ArgumentError(f"timesteps[{i}] is {t} after {listed[i - 1]}; expected a smaller one: each comes once")
    return np.array(listed[::-1], np.int64)


def respaced_timesteps(T: int, spelling: str) -> I64:
    """The timesteps that improved- and guided-diffusion keep of T by their option `timestep_respacing`, ascending.

    spelling: "ddim25", the smallest whole stride with exactly so many; or numbers, "250" or "10,15,20": how many of each of
    as many equal sections, in strides that are fractions, rounded half to even. ArgumentError for what cannot be had.
    """
    counted = spelling.removeprefix("ddim")
    words = counted.split(",") if counted == spelling else [counted]
    if not all(word.strip().isdecimal() and len(word) <= 9 for word in words):
        raise ArgumentError(
            f"respacing is {spelling!r}; expected a number of timesteps as '250', several with commas for as many sections, "
            "as '10,15,20', or whole strides, as 'ddim25'"
        )
    counts = [int(word) for word in words]
    if counted != spelling:
        try:
            return _uniform(Wanted(np.empty(T), counts[0], None, RHO))
        except ArgumentError as error:
            why = str(error).partition("; or use")[0]
            raise ArgumentError(
                f"respacing is {spelling!r}, but {why}. Pass one of these behind ddim, or '{counts[0]}', whose strides are "
                "fractions"
            ) from error
    kept: list[int] = []
    for i, count in enumerate(counts):
        begin, size = i * (T // len(counts)) + min(i, T % len(counts)), T // len(counts) + (i < T % len(counts))
        if not 1 <= count <= size:
            raise ArgumentError(
                f"respacing is {spelling!r}, which asks for {count} of the {size} timesteps of section {i + 1}; expected "
                f"1 .. {size}: ask for so many of it, or for fewer sections"
            )
        stride, at = (size - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):  # added up as the reference does, whose sums decide which half is a half
            kept.append(begin + round(at))
            at += stride
    return np.array(kept, np.int64)


def check_beside_timesteps(
    listed: Sequence[int], steps: int | None, spacing: str | None, t_start: int | None, rho: float
) -> None:
    """ArgumentError for what contradicts a list of timesteps, or would be ignored beside one."""
    if steps not in (None, len(listed)):
        raise ArgumentError(f"steps is {steps}, but timesteps lists {len(listed)}: leave steps out, the list says it")
    for name, value, usual in (("spacing", spacing, None), ("rho", rho, RHO)):
        if value != usual:
            raise ArgumentError(f"{name} is {value!r} beside timesteps, which need no spacing: leave one of the two out")
    if t_start not in (None, listed[0]):
        raise ArgumentError(
            f"t_start is {t_start}, but timesteps begin at {listed[0]}: pass t_start={listed[0]} to start from an image, or "
            "leave it out to start from noise"
        )


def default_spacing(t_start: int | None) -> str:
    """uniform, as the reference; linspace where a chain starts at t_start."""
    return "uniform" if t_start is None else "linspace"
