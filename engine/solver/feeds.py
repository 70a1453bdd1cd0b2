"""A step table as input arrays of the whole-sampler graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.solver.table import StepTable

Feeds = dict[str, npt.NDArray[Any]]


def step_feeds(table: StepTable) -> Feeds:
    """timesteps [R], coefficients [R, 31], weights [R, L] and start [3] (k_noise, k_start, k_centre)."""
    start = table.start
    return {
        "timesteps": np.array(table.timesteps, np.int64),
        "coefficients": np.array(table.rows, np.float32),
        "weights": np.array(table.weights, np.float32),
        "start": np.array([start.k_noise, start.k_start, start.k_centre], np.float32),
    }


def nets_of(table: StepTable) -> npt.NDArray[np.int64]:
    """nets [R], of a graph with a regulariser."""
    return np.zeros(len(table), np.int64) if table.nets is None else np.array(table.nets, np.int64)


def no_noise(n: int, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """What a solver that adds no noise takes as `noise`: one slice for all rows."""
    return np.zeros((1, n, *shape), np.float32)
