"""Noise levels of the trained timesteps."""

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


def log_ratio(alpha_bar: float) -> float:
    """lambda, half the logarithm of the signal-to-noise ratio: infinite at alpha_bar = 1 and minus that at 0.

    By the C library's functions: numpy's own differ in the last bit from one processor to another.
    """
    if alpha_bar in (0.0, 1.0):
        return math.inf if alpha_bar else -math.inf
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))


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
