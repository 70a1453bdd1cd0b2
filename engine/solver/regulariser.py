"""A second, unconditional network between the steps of a chain: rows of its own, with no arithmetic that the others lack.

Before the step from timestep t, a = alpha_bar at t, a row takes x to a prediction of x0 noised afresh to the same level:

    x <- sqrt(a) x0 + sqrt(1 - a) n

    after    x0 is the regulariser's, and the pipeline's own network takes the step: each step but the last is followed by
             the regulariser at the level that it led to
    before   x0 is the own network's, and the regulariser takes the step

That noise brings x to the level that the next network was trained at, so that noise_scale leaves it alone; eps_scale
corrects the own network, and is of its rows alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.kernels import ROW_FIELDS
from engine.solver.levels import Levels
from engine.solver.prediction import predicted_x0
from engine.solver.schedule import F64, I64

OFF, AFTER, BEFORE = REGULARISE = ("off", "after", "before")
OWN, REGULARISER = NETS = (0, 1)  # which network a row calls


def visited(mode: str, timesteps: I64) -> I64:
    """Those of a chain's timesteps, noisiest first, at which the regulariser may run."""
    return timesteps[1:] if mode == AFTER else timesteps


def with_regulariser(
    levels: Levels, rows_of: Callable[[Levels], F64], mode: str, prediction: str, runs: NDArray[np.bool_]
) -> tuple[I64, F64, I64]:
    """Timesteps int64 [R], rows float64 [R, 31] and nets int64 [R] of a chain of S steps.

    rows_of: the rows of a solver that needs one a step and no history. prediction: what the regulariser returns. runs: bool
    [S], whether it does so at the level that each step begins at.
    """
    second = replace(levels, prediction=prediction, eps_scale=1.0)
    own = rows_of(levels)
    if mode == AFTER:
        between, steps, nets = _noised_again(second, own), own, (REGULARISER, OWN)
    else:
        between, steps, nets = _noised_again(levels, own), rows_of(second), (OWN, REGULARISER)
    found: list[tuple[int, F64, int]] = []
    for i, timestep in enumerate(levels.timesteps.tolist()):
        if runs[i]:
            found += [(timestep, between[i], nets[0]), (timestep, steps[i], nets[1])]
        else:
            found.append((timestep, own[i], OWN))
    timesteps, rows, which = zip(*found, strict=True)
    return np.array(timesteps, np.int64), np.stack(rows), np.array(which, np.int64)


def _noised_again(levels: Levels, own: F64) -> F64:
    """The rows x' = sqrt(a) x0 + sqrt(1 - a) n at every level, with the limit and the input's scale of the chain's own."""
    rows = np.zeros_like(own)
    fields = {"k_x0": np.sqrt(levels.alpha_bar), "k_n": np.sqrt(1.0 - levels.alpha_bar), **predicted_x0(levels)}
    for name, values in fields.items():
        rows[:, ROW_FIELDS.index(name)] = values
    kept = [ROW_FIELDS.index(name) for name in ("clip", "c_in")]
    rows[:, kept] = own[:, kept]
    return rows + 0.0  # no negative zeros
