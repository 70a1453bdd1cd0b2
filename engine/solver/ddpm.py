"""Ancestral sampling: DDPM (Ho et al. 2020)."""

from __future__ import annotations

import numpy as np

from engine.solver.levels import Columns, Levels
from engine.solver.prediction import predicted_x0


def ddpm(levels: Levels) -> Columns:
    """The mean of q(x_s | x_t, x0), DDPM eq. 7 with the spaced chain's beta, and noise:

        x' = sqrt(a') beta / (1 - a) x0 + sqrt(1 - beta) (1 - a') / (1 - a) x_t + sigma n
    sigma^2: fixedlarge beta, fixedsmall beta~ (section 3.2); none where a' = 1. With a centre x_t - c has this posterior.
    """
    a, previous, beta = levels.alpha_bar, levels.previous, levels.beta
    k_x = np.sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - a)
    sigma = np.sqrt(beta if levels.variance == "fixedlarge" else levels.posterior_variance)
    return Columns(
        levels.timesteps,
        predicted_x0(levels)
        | {
            "k_x0": np.sqrt(previous) * beta / (1.0 - a),
            "k_x": k_x,
            "k_c": levels.around_centre(k_x),
            "k_n": np.where(levels.final, 0.0, sigma),
        },
    )
