"""DPM-Solver++(2M), second order with one past x0 (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from engine.solver.levels import Columns, Levels
from engine.solver.prediction import predicted_x0
from engine.solver.schedule import F64

PUSH_X0 = 2.0


def dpmpp_2m(levels: Levels) -> Columns:
    """Algorithm 2: with lambda = log(sqrt(a) / sqrt(1 - a)), h = lambda' - lambda and r = h of the row before / h,

        D  = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0 of the row before
        x' = sqrt((1 - a') / (1 - a)) x_t - sqrt(a') (e^-h - 1) D
    The first row has no past, and where a' = 1 (lambda' infinite) the step is x0 itself: D = x0 in both. The past x0 is
    the limited one. With a centre x_t - c takes the place of x_t.
    """
    a, previous = levels.alpha_bar, levels.previous
    h = _each(_lambda, previous) - _each(_lambda, a)
    past = np.zeros(levels.steps)  # 1 / (2 r)
    second = np.arange(1, levels.steps)[~levels.final[1:]]
    past[second] = h[second] / (2.0 * h[second - 1])
    toward = -np.sqrt(previous) * _each(math.expm1, -h)
    k_x = np.sqrt((1.0 - previous) / (1.0 - a))
    return Columns(
        levels.timesteps,
        predicted_x0(levels)
        | {
            "k_x0": toward * (1.0 + past),
            "k_h1": 0.0 - toward * past,
            "k_x": k_x,
            "k_c": levels.around_centre(k_x),
            "push": PUSH_X0 * np.append(past[1:] != 0.0, False),  # only what the next row reads
        },
    )


def _lambda(alpha_bar: float) -> float:
    """Half the logarithm of the signal-to-noise ratio, infinite at alpha_bar = 1 and minus that at 0."""
    if alpha_bar in (0.0, 1.0):
        return math.inf if alpha_bar else -math.inf
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))


def _each(function: Callable[[float], float], values: F64) -> F64:
    """By the C library's function: numpy's own differ in the last bit from one processor to another."""
    return np.array([function(value) for value in values.tolist()])
