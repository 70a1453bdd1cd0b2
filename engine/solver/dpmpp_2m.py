"""DPM-Solver++(2M), second order with one past x0, as ODE and as SDE (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engine.solver.ddim import ddim
from engine.solver.levels import Columns, Levels
from engine.solver.schedule import F64, log_ratio

PUSH_X0 = 2.0


def dpmpp_2m(levels: Levels) -> Columns:
    """Algorithm 2: with lambda = log(sqrt(a) / sqrt(1 - a)), h = lambda' - lambda and r = h of the row before / h,

        D  = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0 of the row before
        x' = sqrt((1 - a') / (1 - a)) x_t - sqrt(a') (e^-h - 1) D
    x_t stands for sqrt(a) x0 + sqrt(1 - a) eps, x0 limited and eps the network's own. That makes it DDIM's step and a second
    term, in which nothing is left of an x0 beyond the limit:

        x' = sqrt(a') x0 + sqrt(1 - a') eps - sqrt(a') (e^-h - 1) / (2 r) (x0 - x0 of the row before)
    """
    return _second_order(levels, eta=0.0, of_h=lambda h: -math.expm1(-h))


def sde_dpmpp_2m(levels: Levels) -> Columns:
    """SDE-DPM-Solver++(2M) of the same paper, with the D of `dpmpp_2m` and x_t read as there:

        x' = sqrt((1 - a') / (1 - a)) e^-h x_t + sqrt(a') (1 - e^-2h) D + sqrt(1 - a') sqrt(1 - e^-2h) n
    Its first order is DDIM's step with eta = 1, whose noise is the same.
    """
    return _second_order(levels, eta=1.0, of_h=lambda h: -math.expm1(-2.0 * h))


def _second_order(levels: Levels, *, eta: float, of_h: Callable[[float], float]) -> Columns:
    """DDIM's rows with sqrt(a') of_h(h) / (2 r) (x0 - h1) added."""
    step = ddim(replace(levels, eta=eta))
    h = lambda_steps(levels)
    gain = np.sqrt(levels.previous) * each(of_h, h) * half_ratios(levels, h)
    return Columns(step.timesteps, dict(step.fields) | with_past_x0(levels, gain))


def with_past_x0(levels: Levels, gain: F64) -> dict[str, F64]:
    """DDIM's k_x0 with gain (x0 - h1) added, and the pushes that this takes: only what the next row reads."""
    return {
        "k_x0": np.sqrt(levels.previous) + gain,
        "k_h1": 0.0 - gain,
        "push": PUSH_X0 * np.append(~levels.final[1:], False),
    }


def half_ratios(levels: Levels, h: F64) -> F64:
    """1 / (2 r) = h / (2 h of the row before); 0 in the first row, without a past, and where a' = 1 (lambda' infinite)."""
    past = np.zeros(levels.steps)
    second = np.arange(1, levels.steps)[~levels.final[1:]]
    past[second] = h[second] / (2.0 * h[second - 1])
    return past


def lambda_steps(levels: Levels) -> F64:
    """h of every row, infinite where a' = 1."""
    return each(log_ratio, levels.previous) - each(log_ratio, levels.alpha_bar)


def each(function: Callable[[float], float], values: F64) -> F64:
    """By the C library's function: numpy's own differ in the last bit from one processor to another."""
    return np.array([function(value) for value in values.tolist()])
