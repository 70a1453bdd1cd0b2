"""PLMS, pseudo linear multistep of fourth order with three past eps (Liu et al. 2022), as latent diffusion starts it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.solver.ddim import ddim
from engine.solver.levels import Columns, Levels
from engine.solver.schedule import F64

PUSH_E = 1.0
# Adams-Bashforth weights of e, h1, h2, h3 by the number of past eps (Liu et al. eq. 12 for three).
ORDERS = (
    (1, 0, 0, 0), (3 / 2, -1 / 2, 0, 0), (23 / 12, -16 / 12, 5 / 12, 0), (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # fmt: skip
AVERAGE = (1 / 2, 1 / 2, 0, 0)


def plms(levels: Levels) -> Columns:
    """DDIM's step with eta = 0, in which a combination e' of this and past eps takes the place of eps.

    The first step is two rows, Heun's method: row 0 steps with e as it is, pushes it and keeps x as the base y; row 1 asks
    the network at the next timestep and steps again from y with e' = (e + h1) / 2, without pushing. From the second
    step on, e' is the Adams-Bashforth combination of e and the one, two or three past eps. R = S + 1.
    """
    step = ddim(replace(levels, eta=0.0)).fields
    at = np.r_[0, 0, 1 : levels.steps]  # the step that each row belongs to
    orders = np.array([ORDERS[0], AVERAGE, *(ORDERS[min(i, 3)] for i in range(1, levels.steps))])
    of = {name: np.broadcast_to(values, levels.steps)[at] for name, values in step.items()}
    from_base = np.arange(len(at)) == 1
    columns = {name: of[name] for name in ("p_c", "k_x0", "k_c")}
    columns |= {"p_x": np.where(from_base, 0.0, of["p_x"]), "p_y": np.where(from_base, of["p_x"], 0.0)}
    columns |= _combined("p", of["p_e"], orders) | _combined("k", of["k_e"], orders)
    columns["q_x"] = np.where(np.arange(len(at)) == 0, 1.0, 0.0)
    columns["push"] = np.where(from_base, 0.0, PUSH_E)
    columns["push"][-1] = 0.0
    timesteps = levels.timesteps[at]
    timesteps[1] = levels.timesteps[min(1, levels.steps - 1)]  # the next timestep; the same one where there is none
    return Columns(timesteps, columns)


def _combined(which: str, of_eps: F64, orders: F64) -> dict[str, F64]:
    """The coefficient of eps spread over e and the past: p_e, p_h1, p_h2, p_h3 (or k_...)."""
    return {f"{which}_{name}": of_eps * orders[:, i] for i, name in enumerate(("e", "h1", "h2", "h3"))}
