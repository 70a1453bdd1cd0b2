"""DDIM (Song et al. 2021), deterministic or with a share of DDPM's noise."""

from __future__ import annotations

import numpy as np

from engine.solver.levels import Columns, Levels
from engine.solver.prediction import predicted, predicted_x0
from engine.solver.schedule import F64


def ddim(levels: Levels) -> Columns:
    """DDIM eq. 12 with the sigma of eq. 16:

        sigma = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')
        x'    = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma n
    eps is the network's, also where x0 is limited. With a centre, eps is around c, and c is added again.
    """
    of = predicted(levels)
    along = _along(levels)
    k_x = along * of.eps_x
    return Columns(
        levels.timesteps,
        predicted_x0(levels)
        | {
            "k_x0": np.sqrt(levels.previous),
            "k_x": k_x,
            "k_e": along * of.eps_e,
            "k_c": levels.around_centre(k_x),
            "k_n": levels.noise_scale * _sigma(levels),
        },
    )


def ddim_clipped(levels: Levels) -> Columns:
    """The same with the eps that belongs to x0 as limited, as guided-diffusion has it: where nothing is limited it is ddim.

        eps' = (x - sqrt(a) x0) / sqrt(1 - a)

    With a guide of scale s (Dhariwal & Nichol 2021, algorithm 2) eps' - s sqrt(1 - a) g takes the place of eps', and x0 is
    made of it again, and not limited again: what that adds to x' is

        s (sqrt(a') (1 - a) / sqrt(a) - sqrt(1 - a' - sigma^2) sqrt(1 - a)) g
    """
    step = ddim(levels).fields
    k_x = _along(levels) / np.sqrt(1.0 - levels.alpha_bar)
    k_x0 = step["k_x0"] - k_x * np.sqrt(levels.alpha_bar)
    columns = {**step, "k_x0": k_x0, "k_x": k_x, "k_e": 0.0, "k_c": levels.around_centre(k_x)}
    if levels.guided.any():
        a, noise = levels.alpha_bar, np.sqrt(1.0 - levels.alpha_bar)
        columns["k_g"] = levels.guide_scale * noise * (np.sqrt(levels.previous / a) * noise - _along(levels))
    return Columns(levels.timesteps, columns)


def _sigma(levels: Levels) -> F64 | float:
    return levels.eta * np.sqrt(levels.posterior_variance)


def _along(levels: Levels) -> F64:
    """What is left for eps beside sigma; rounding may fall below 0 at eta = 1."""
    return np.asarray(np.sqrt(np.maximum(0.0, 1.0 - levels.previous - _sigma(levels) ** 2)))
