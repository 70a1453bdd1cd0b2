"""iPNDM, linear multistep with up to three past eps and a start of lower orders (Liu et al. 2022; Zhang & Chen 2023)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.solver.ddim import ddim
from engine.solver.levels import Columns, Levels
from engine.solver.schedule import F64, I64

PUSH_E = 1.0
# Adams-Bashforth weights of e, h1, h2, h3 by the number of past eps (Liu et al. eq. 12 for three).
ORDERS = (
    (1, 0, 0, 0), (3 / 2, -1 / 2, 0, 0), (23 / 12, -16 / 12, 5 / 12, 0), (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # fmt: skip


def ipndm(levels: Levels) -> Columns:
    """DDIM's step with eta = 0, in which an Adams-Bashforth combination e' of this and past eps takes the place of eps: none
    in the first step, one in the second, three from the fourth on."""
    rows = np.arange(levels.steps)
    fields = with_past_eps(levels, rows, np.array([ORDERS[min(row, 3)] for row in range(levels.steps)]))
    return Columns(levels.timesteps, fields | {"push": np.where(rows < levels.steps - 1, PUSH_E, 0.0)})


def with_past_eps(levels: Levels, at: I64, orders: F64) -> dict[str, F64]:
    """DDIM's fields in rows that belong to the steps `at`, with orders[row] . (e, h1, h2, h3) in place of eps.

    Each past eps is scaled as that of its own step was. For networks that predict eps.
    """
    step = {
        name: np.broadcast_to(values, levels.steps)[at]
        for name, values in ddim(replace(levels, eta=0.0, eps_scale=1.0)).fields.items()
    }
    scale = np.broadcast_to(levels.eps_scale, levels.steps)
    fields = {name: step[name] for name in ("p_x", "p_c", "k_x0", "k_c")}
    for which in ("p", "k"):
        for i, name in enumerate(("e", "h1", "h2", "h3")):
            fields[f"{which}_{name}"] = step[f"{which}_e"] * orders[:, i] * scale[np.maximum(at - i, 0)]
    return fields
