"""Noise levels along a chain: what every solver is given, and the columns that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.solver.schedule import F64, I64

# Of DDPM's noise: two that the schedule fixes, and one for networks whose second output says it.
FIXED_VARIANCES, LEARNED_RANGE = ("fixedlarge", "fixedsmall"), "learned_range"
VARIANCES = (*FIXED_VARIANCES, LEARNED_RANGE)


@dataclass(frozen=True)
class Levels:
    """The kept timesteps of a chain, noisiest first, and what a solver has to know besides.

    timesteps   int64 [S], as the network is given them
    alpha_bar   float64 [S], a: the level of x before the step
    previous    float64 [S], a': the level after it; 1 where no noise is left, so that the step returns x0 itself
    prediction  what the network returns: a name of PREDICTIONS
    centred     whether the noise lies around a centre c: x_t = sqrt(a) x0 + c + sqrt(1 - a) eps
    eta         share of DDPM's posterior noise that ddim adds, one or [S]
    variance    of ddpm's noise: a name of VARIANCES
    noise_scale what the noise of each step is multiplied by, one or [S]
    eps_scale   what eps is multiplied by before anything is made of it, one or [S]
    guide_scale what a guide's gradient is multiplied by, one or [S]; 0: no guide
    """

    timesteps: I64
    alpha_bar: F64
    previous: F64
    prediction: str = "eps"
    centred: bool = False
    eta: F64 | float = 0.0
    variance: str = "fixedlarge"
    noise_scale: F64 | float = 1.0
    eps_scale: F64 | float = 1.0
    guide_scale: F64 | float = 0.0

    @property
    def steps(self) -> int:
        """S."""
        return len(self.timesteps)

    @cached_property
    def beta(self) -> F64:
        """beta of the spaced chain: 1 - a / a' (what makes its alphas multiply to the same alpha_bar)."""
        return 1.0 - self.alpha_bar / self.previous

    @cached_property
    def posterior_variance(self) -> F64:
        """DDPM eq. 7: beta~ = beta (1 - a') / (1 - a); 0 where a' = 1."""
        return self.beta * (1.0 - self.previous) / (1.0 - self.alpha_bar)

    @cached_property
    def final(self) -> np.ndarray:
        """Where a' = 1: bool [S]."""
        return self.previous == 1.0

    @cached_property
    def guided(self) -> np.ndarray:
        """Where a guide is asked for: bool [S]."""
        return np.broadcast_to(self.guide_scale, self.alpha_bar.shape) != 0.0

    def around_centre(self, of_x: F64 | float) -> F64 | float:
        """The coefficient of c that makes `of_x x` into `of_x (x - c) + c`; 0 without a centre."""
        return 1.0 - of_x if self.centred else 0.0


@dataclass(frozen=True)
class Columns:
    """What a solver returns: the timestep of each row, int64 [R], and the row's fields that are not 0, by name."""

    timesteps: I64
    fields: Mapping[str, F64 | float]
