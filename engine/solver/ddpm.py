"""Ancestral sampling: DDPM (Ho et al. 2020)."""

from __future__ import annotations

import numpy as np

from engine.solver.levels import LEARNED_RANGE, Columns, Levels
from engine.solver.prediction import predicted_x0
from engine.solver.schedule import F64


def ddpm(levels: Levels) -> Columns:
    """The mean of q(x_s | x_t, x0), DDPM eq. 7 with the spaced chain's beta, and noise:

        x' = sqrt(a') beta / (1 - a) x0 + sqrt(1 - beta) (1 - a') / (1 - a) x_t + sigma n
    sigma^2: fixedlarge beta, fixedsmall beta~ (section 3.2); none where a' = 1. With a centre x_t - c has this posterior.

    learned_range (Nichol & Dhariwal 2021, eq. 15): the network's second output v in about [-1, 1] says where log sigma^2
    lies between log beta~ and log beta, so that sigma = (beta beta~)^(1/4) exp(v log(beta / beta~) / 4).

    With a guide of scale s (Dhariwal & Nichol 2021, algorithm 1) s sigma^2 g is added to the mean, also in a last step
    without noise; see `_guided`.
    """
    a, previous, beta = levels.alpha_bar, levels.previous, levels.beta
    k_x = np.sqrt(1.0 - beta) * (1.0 - previous) / (1.0 - a)
    sigma = np.sqrt(beta if levels.variance == "fixedlarge" else levels.posterior_variance)
    scale: F64 | float = 0.0
    if levels.variance == LEARNED_RANGE:
        sigma = np.sqrt(np.sqrt(beta * levels.posterior_variance))
        ratio = (1.0 - a) / np.where(levels.final, 1.0 - a, 1.0 - previous)  # beta / beta~; 1 where there is no noise
        scale = np.log(ratio) / 4.0
    return Columns(
        levels.timesteps,
        predicted_x0(levels)
        | {
            "k_x0": np.sqrt(previous) * beta / (1.0 - a),
            "k_x": k_x,
            "k_c": levels.around_centre(k_x),
            "k_n": np.where(levels.final, 0.0, levels.noise_scale * sigma),
            "s_n": scale,
        }
        | (_guided(levels, scale) if levels.guided.any() else {}),
    )


def _guided(levels: Levels, scale: F64 | float) -> dict[str, F64 | float]:
    """k_g and s_n where a guide is asked for, sigma^2 being k_g exp(2 s_n v) / s: whoever executes a row scales g by that.

    The last step has the beta~ of the step before it as its own, as the reference has it, but not as fixedsmall's sigma.
    """
    beta = np.asarray(levels.beta)
    posterior = np.where(levels.final, np.append(beta[:1], levels.posterior_variance)[:-1], levels.posterior_variance)
    if levels.variance == "fixedsmall":
        return {"k_g": levels.guide_scale * levels.posterior_variance}
    if levels.variance == "fixedlarge":
        return {"k_g": levels.guide_scale * np.where(levels.final, posterior, beta)}
    last = np.where(levels.final & levels.guided, np.log(beta / posterior) / 4.0, scale)
    return {"k_g": levels.guide_scale * np.sqrt(beta * posterior), "s_n": last}
