"""What a network's output says of x0 and eps: eps, x0 or v prediction as coefficients, for every solver alike.

x_t = sqrt(a) x0 + sqrt(1 - a) eps, a = alpha_bar (DDPM eq. 4). With a centre c, x_t - c takes the place of x_t
(Pandey et al. 2022: noise centred on c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.solver.levels import Levels
from engine.solver.schedule import F64

Number = F64 | float


@dataclass(frozen=True)
class Prediction:
    """x0 = x0_x x_t + x0_e e and eps = eps_x x_t + eps_e e, e being what the network returns."""

    x0_x: Number
    x0_e: Number
    eps_x: Number
    eps_e: Number


def _eps(a: F64) -> Prediction:
    """e = eps:  x0 = x_t / sqrt(a) - sqrt(1/a - 1) e"""
    return Prediction(x0_x=1.0 / np.sqrt(a), x0_e=-np.sqrt(1.0 / a - 1.0), eps_x=0.0, eps_e=1.0)


def _x0(a: F64) -> Prediction:
    """e = x0:  eps = (x_t - sqrt(a) e) / sqrt(1 - a)"""
    return Prediction(x0_x=0.0, x0_e=1.0, eps_x=1.0 / np.sqrt(1.0 - a), eps_e=-np.sqrt(a / (1.0 - a)))


def _v(a: F64) -> Prediction:
    """e = v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans & Ho 2022, appendix D):

        x0 = sqrt(a) x_t - sqrt(1 - a) e,   eps = sqrt(1 - a) x_t + sqrt(a) e
    """
    signal, noise = np.sqrt(a), np.sqrt(1.0 - a)
    return Prediction(x0_x=signal, x0_e=-noise, eps_x=noise, eps_e=signal)


PREDICTIONS: dict[str, Callable[[F64], Prediction]] = {"eps": _eps, "x0": _x0, "v": _v}


def predicted(levels: Levels) -> Prediction:
    """The coefficients at every level of a chain. Where eps is scaled by s, x0 follows it: x_t stays what it is, so that

        eps' = s eps,   x0' = (x_t - sqrt(1 - a) eps') / sqrt(a) = x0 - (s - 1) sqrt(1/a - 1) eps
    """
    of, scale = PREDICTIONS[levels.prediction](levels.alpha_bar), levels.eps_scale
    more = np.where(scale == 1.0, 0.0, (scale - 1.0) * np.sqrt(1.0 / levels.alpha_bar - 1.0))
    return Prediction(
        x0_x=of.x0_x - more * of.eps_x,
        x0_e=of.x0_e - more * of.eps_e,
        eps_x=scale * of.eps_x,
        eps_e=scale * of.eps_e,
    )


def predicted_x0(levels: Levels) -> dict[str, Number]:
    """The columns p of x0 = limit(p_x x + p_e e + p_c c)."""
    of = predicted(levels)
    return {"p_x": of.x0_x, "p_e": of.x0_e, "p_c": 0.0 - of.x0_x if levels.centred else 0.0}
