"""Noise schedules as checkpoints store them: the betas of a recipe, or a table of their own.

A checkpoint holds betas that were computed in one dtype, by one library's linspace, and stored in perhaps another. A recipe
is recognised where every beta is the recipe's to within the rounding of the dtype that the stored values have the grain of;
where they differ by more, or are finer than the recipe, the stored values are what the network was trained with, and are
kept as a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.bundle.training import ScheduleSpec
from engine.errors import ArgumentError, CheckpointError
from engine.solver.schedule import F64

# From the coarsest to the finest: values in float64 that are all exact in float32 were computed in float32.
GRAINS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Units in the last place that two computations of one recipe may differ by: two linspaces (the engine counts from both
# ends, others from one) by one, and one for rounding to the stored dtype. A square doubles that of its base.
ULPS = {"linear": 2.0, "scaled_linear": 4.0, "cosine": 2.0}
EPS = float(np.finfo(np.float64).eps)
ORDER = 16 * EPS  # relative: the same float64 arithmetic in another order
CANCELLED = {"cosine": 4 * EPS}  # absolute: what 1 - f(t + 1) / f(t) loses is relative to 1, not to beta
COSINE = {"s": 0.008, "max_beta": 0.999}  # of Nichol & Dhariwal 2021, in every implementation
DIGITS = 17  # that tell any float64 from its neighbours
AGREES = 1e-6  # relative: what --schedule or a preset says of betas that are kept as a table


@dataclass(frozen=True)
class _Stored:
    """Stored betas: their values in float64, and the distance to the next value of their grain."""

    values: F64
    ulp: F64
    grain: torch.dtype

    @property
    def T(self) -> int:
        return len(self.values)


def read_schedule(betas: torch.Tensor, name: str, path: Path) -> ScheduleSpec:
    """The recipe that betas [T] were made by, or the betas themselves; CheckpointError for what is no schedule."""
    if betas.ndim != 1 or len(betas) < 2 or betas.dtype not in GRAINS or not bool(torch.isfinite(betas).all()):
        raise CheckpointError(
            f"{path}: found {name} of shape {list(betas.shape)} and dtype {betas.dtype}, expected at least two betas "
            "between 0 and 1; use the checkpoint as it was written"
        )
    stored = _stored(betas)
    found = next((spec for spec in _candidates(stored) if _matches(spec, stored)), None)
    return found or _table(stored, name, path)


def linear(start: float, end: float, T: int) -> ScheduleSpec:
    """The linear recipe."""
    return ScheduleSpec("linear", T, {"start": start, "end": end}, None)


def agree(told: ScheduleSpec, read: ScheduleSpec) -> bool:
    """Whether both are the same schedule, up to what a recipe's rounding leaves open."""
    if told == read:
        return True
    if told.T != read.T or read.recipe != "table":
        return False
    return bool(np.allclose(told.schedule().betas, read.schedule().betas, rtol=AGREES, atol=0.0))


def entry_of(spec: ScheduleSpec) -> dict[str, object]:
    """A schedule as manifest.json has it."""
    betas = {} if spec.betas is None else {"betas": list(spec.betas)}
    return {"recipe": spec.recipe, "T": spec.T, **spec.numbers, **betas}


def rounding(betas: torch.Tensor) -> str | None:
    """The dtype in less than float32 that stored betas were rounded to, by name; None for full ones."""
    grain = _stored(betas).grain
    return None if grain in (torch.float32, torch.float64) else str(grain).removeprefix("torch.")


def explains(spec: ScheduleSpec, betas: torch.Tensor) -> bool:
    """Whether stored betas are those of a recipe but for their rounding."""
    return len(betas) == spec.T and _matches(spec, _stored(betas))


def describe(spec: ScheduleSpec) -> str:
    """A schedule in a few words, for people."""
    if spec.betas is not None:
        return f"a table of betas from {spec.betas[0]:g} to {spec.betas[-1]:g}, T = {spec.T}"
    if spec.recipe == "cosine":
        return f"cosine, T = {spec.T}"
    return f"{spec.recipe.replace('_', ' ')}, beta {spec.numbers['start']:g} to {spec.numbers['end']:g}, T = {spec.T}"


def _stored(betas: torch.Tensor) -> _Stored:
    values = betas.detach().to(torch.float64)
    grain = next(dtype for dtype in GRAINS if torch.equal(values.to(dtype).to(torch.float64), values))
    info = torch.finfo(grain)
    exact = values.abs().numpy()
    _, exponent = np.frexp(np.maximum(exact, float(info.tiny)))
    return _Stored(values.numpy(), np.ldexp(float(info.eps), exponent - 1), grain)


def _candidates(stored: _Stored) -> Iterator[ScheduleSpec]:
    """Recipes that the ends of the stored betas speak for."""
    if stored.T > 2:
        yield ScheduleSpec("cosine", stored.T, dict(COSINE), None)
    for recipe in ("linear", "scaled_linear"):
        # Ends one unit off are those of a short number too; where that does not fit, they are meant as they are.
        for ulps in (ULPS[recipe], 0.5):
            start, end = (_shortest(stored, index, ulps) for index in (0, -1))
            if 0 < start <= end < 1:
                yield ScheduleSpec(recipe, stored.T, {"start": start, "end": end}, None)


def _shortest(stored: _Stored, index: int, ulps: float) -> float:
    """The number of fewest digits within so many units of a stored one."""
    value, limit = float(stored.values[index]), ulps * float(stored.ulp[index])
    tries = (float(f"{value:.{digits}g}") for digits in range(1, DIGITS + 1))
    return next(number for number in tries if abs(number - value) <= limit)


def _matches(spec: ScheduleSpec, stored: _Stored) -> bool:
    try:
        betas = spec.schedule().betas
    except ArgumentError:
        return False  # ends that the recipe does not take
    # Rounded first: the recipe's own rounding to the stored dtype is no difference.
    rounded = torch.from_numpy(betas.copy()).to(stored.grain).to(torch.float64).numpy()
    limit = ULPS[spec.recipe] * stored.ulp + ORDER * stored.values + CANCELLED.get(spec.recipe, 0.0)
    return bool((np.abs(rounded - stored.values) <= limit).all())


def _table(stored: _Stored, name: str, path: Path) -> ScheduleSpec:
    betas = stored.values
    if not ((betas > 0) & (betas < 1)).all():
        index = int(np.flatnonzero(~((betas > 0) & (betas < 1)))[0])
        raise CheckpointError(
            f"{path}: found {betas[index]:g} as {name}[{index}], expected betas between 0 and 1; use the checkpoint as it "
            "was written"
        )
    alpha_bar = np.cumprod(1.0 - betas)
    if alpha_bar[-1] <= 0.0 or not (np.diff(alpha_bar, prepend=1.0) < 0).all():
        index = int(np.flatnonzero((np.diff(alpha_bar, prepend=1.0) >= 0) | (alpha_bar <= 0))[0])
        raise CheckpointError(
            f"{path}: found {name} whose product of 1 - beta stays {alpha_bar[index]:g} at [{index}], expected it to fall "
            "and stay above 0; use the checkpoint as it was written"
        )
    assert all(math.isfinite(beta) for beta in betas)
    return ScheduleSpec("table", stored.T, {}, tuple(betas.tolist()))
