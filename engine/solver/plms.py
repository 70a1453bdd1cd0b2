"""PLMS, pseudo linear multistep of fourth order with three past eps (Liu et al. 2022), as latent diffusion starts it."""

from __future__ import annotations

import numpy as np

from engine.solver.ipndm import ORDERS, PUSH_E, with_past_eps
from engine.solver.levels import Columns, Levels

AVERAGE = (1 / 2, 1 / 2, 0, 0)


def plms(levels: Levels) -> Columns:
    """DDIM's step with eta = 0, in which a combination e' of this and past eps takes the place of eps.

    The first step is two rows, Heun's method: row 0 steps with e as it is, pushes it and keeps x as the base y; row 1 asks
    the network at the next timestep and steps again from y with e' = (e + h1) / 2, without pushing. From the second
    step on, e' is the Adams-Bashforth combination of e and the one, two or three past eps. R = S + 1.
    """
    at = np.r_[0, 0, 1 : levels.steps]  # the step that each row belongs to
    orders = np.array([ORDERS[0], AVERAGE, *(ORDERS[min(i, 3)] for i in range(1, levels.steps))])
    columns = with_past_eps(levels, at, orders)
    from_base = np.arange(len(at)) == 1
    of_x = columns["p_x"]
    columns |= {"p_x": np.where(from_base, 0.0, of_x), "p_y": np.where(from_base, of_x, 0.0)}
    columns["q_x"] = np.where(np.arange(len(at)) == 0, 1.0, 0.0)
    columns["push"] = np.where(from_base, 0.0, PUSH_E)
    columns["push"][-1] = 0.0
    timesteps = levels.timesteps[at]
    timesteps[1] = levels.timesteps[min(1, levels.steps - 1)]  # the next timestep; the same one where there is none
    return Columns(timesteps, columns)
