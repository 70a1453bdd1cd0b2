"""Gaussian data, where eps is known: for x0 ~ N(0, v) it is linear in x, and the flow scales x_t by sqrt(var_s / var_t)."""

from __future__ import annotations

import math

import numpy as np

from engine.solver.levels import Levels
from tests.solver_rows import run_solver

V = np.array([0.3, 1.7, 4.0])  # v of each element


def error_of(solver, a_of_u, steps: int) -> float:
    """The largest relative error at the end of `steps` even steps of u from noise to near data."""
    a = np.array([a_of_u(u) for u in np.linspace(1, 0, steps + 1)])
    at = Levels(np.arange(steps), a[:-1], a[1:])
    levels_at = np.append(a[:-1], a[-1])

    def network(x, t):
        a = levels_at[t]
        return math.sqrt(1 - a) * x / (a * V + 1 - a)

    x = run_solver(solver, at, network, np.ones(3))[-1]
    exact = np.sqrt((a[-1] * V + 1 - a[-1]) / (a[0] * V + 1 - a[0]))
    return float(np.abs(x / exact - 1).max())


def spread_error_of(solver, a_of_u, steps: int) -> float:
    """The largest relative error of the standard deviation at the end of a chain with noise.

    Rows are linear in the start and in each row's noise: the variance is the sum of the squares of what each leaves alone.
    """
    a = np.array([a_of_u(u) for u in np.linspace(1, 0, steps + 1)])
    at = Levels(np.arange(steps), a[:-1], a[1:], eta=1.0)

    def network(x, t):
        return np.sqrt(1 - a[t]) * x / (a[t] * V + 1 - a[t])

    # Columns: the start's unit noise, then that of each row.
    ones = np.eye(steps + 1)[:, :, None]
    start = np.sqrt(a[0] * V + 1 - a[0]) * ones[0]
    end = run_solver(solver, at, network, start, noise=list(np.broadcast_to(ones[1:], (steps, steps + 1, len(V)))))[-1]
    exact = np.sqrt(a[-1] * V + 1 - a[-1])
    return float(np.abs(np.sqrt((end**2).sum(0)) / exact - 1).max())


def even_in_lambda(u: float) -> float:
    """lambda from 2.5 (little noise) to -3."""
    return 1 / (1 + math.exp(-2 * (2.5 - 5.5 * u)))


def even_in_noise(u: float) -> float:
    """sqrt((1 - a) / a), the variable that DDIM's step is exact in, from 0.2 to 8."""
    return 1 / (1 + (0.2 + 7.8 * u) ** 2)


def curved(u: float) -> float:
    """A grid even in neither."""
    return 1 / (1 + (0.2 + 7.8 * u**2) ** 2)
