"""UniPC-2, of x0, with B(h) = e^h - 1: predictor and corrector from one call (Zhao et al. 2023, arXiv 2302.04867)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from engine.solver.ddim import ddim
from engine.solver.dpmpp_2m import each, half_ratios, lambda_steps, with_past_x0
from engine.solver.levels import Columns, Levels
from engine.solver.schedule import F64


def unipc_2(levels: Levels) -> Columns:
    """Row i corrects the state that it was given with the x0 it predicts from it, and steps on from there.

    The predictor (UniP-2) is DPM-Solver++(2M)'s step, and reads x_t as that does. The corrector (UniC) takes the step
    before once more, now with the x0 at its end. Both start from the same state, so their difference is one of past x0
    alone; with h that of the step before, and r = -h of the one before that / h,

        x_c - x_t = sqrt(a) (1 - e^-h) ((b0 - 1/2) (h2 - h1) / r + b1 (x0 - h1))
        b0 + b1   = (phi2 / phi1),  r b0 + b1 = 2 (phi3 / phi1)
        phi1      = e^-h - 1,  phi2 = -phi1 / h - 1,  phi3 = -phi2 / h - 1/2
    In the second row the step before was of first order: b1 = 1/2 and no h2. x' takes sqrt((1 - a') / (1 - a)) of it.
    Where a' = 1 the step returns x0, without a past.
    """
    step = ddim(replace(levels, eta=0.0))
    h = lambda_steps(levels)
    toward = -np.sqrt(levels.previous) * each(math.expm1, -h)
    fields = dict(step.fields) | with_past_x0(levels, toward * half_ratios(levels, h))
    of_x = np.sqrt((1.0 - levels.previous) / (1.0 - levels.alpha_bar))
    corrections = of_x[:, None] * np.array([_correction(levels, h, row) for row in range(levels.steps)])
    fields["k_x0"] = fields["k_x0"] + corrections[:, 0]
    fields["k_h1"] = fields["k_h1"] + corrections[:, 1]
    return Columns(step.timesteps, fields | {"k_h2": corrections[:, 2]})


def _correction(levels: Levels, h: F64, row: int) -> tuple[float, float, float]:
    """x_c - x_t in x0, h1 and h2."""
    if row == 0 or levels.final[row]:
        return 0.0, 0.0, 0.0
    before = float(h[row - 1])
    phi1 = math.expm1(-before)
    size = math.sqrt(float(levels.alpha_bar[row])) * -phi1
    if row == 1:
        return size / 2.0, -size / 2.0, 0.0
    phi2 = -phi1 / before - 1.0
    phi3 = -phi2 / before - 0.5
    r = -float(h[row - 2]) / before
    b0 = (phi2 - 2.0 * phi3) / phi1 / (1.0 - r)
    b1 = phi2 / phi1 - b0
    of_h2 = size * (b0 - 0.5) / r
    return size * b1, -of_h2 - size * b1, of_h2
