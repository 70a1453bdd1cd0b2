"""DDIM (Song et al. 2021), deterministic or with a share of DDPM's noise."""

from __future__ import annotations

import numpy as np

from engine.solver.levels import Columns, Levels
from engine.solver.prediction import predicted, predicted_x0


def ddim(levels: Levels) -> Columns:
    """DDIM eq. 12 with the sigma of eq. 16:

        sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')
        x'    = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma n
    eps is the network's, also where x0 is limited. With a centre, eps is around c, and c is added again.
    """
    of = predicted(levels)
    sigma = levels.eta * np.sqrt(levels.posterior_variance)
    along = np.sqrt(np.maximum(0.0, 1.0 - levels.previous - sigma**2))  # rounding may fall below 0 at eta = 1
    k_x = along * of.eps_x
    return Columns(
        levels.timesteps,
        predicted_x0(levels)
        | {
            "k_x0": np.sqrt(levels.previous),
            "k_x": k_x,
            "k_e": along * of.eps_e,
            "k_c": levels.around_centre(k_x),
            "k_n": levels.noise_scale * sigma,
        },
    )
