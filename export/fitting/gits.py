"""Timesteps from a teacher's own trajectories (GITS, Chen et al. 2024, arXiv 2405.11326): no image is needed.

A long chain without noise passes x_0, x_1, ..., x_N. A step of a short chain from x_i to x_j misses x_j by

    cost(i, j) = |sqrt(a_j) x0_i + sqrt(1 - a_j) eps_i - x_j|

and the K steps of least total cost are found by dynamic programming over the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import Sampler
from engine.result import StepInfo

F64 = npt.NDArray[np.float64]
GRID = 40  # calls of the teacher


@dataclass(frozen=True)
class Trajectory:
    """A teacher's chain over some seeds: timesteps int64 [N], falling; costs float64 [N, N + 1], the last column the
    clean end, infinite where j <= i."""

    timesteps: npt.NDArray[np.int64]
    costs: F64

    def steps(self, count: int) -> tuple[int, ...]:
        """The `count` timesteps of least cost, falling; the first is the teacher's own."""
        nodes = len(self.timesteps)
        best = np.full((count + 1, nodes + 1), np.inf)  # [steps taken, node reached]
        back = np.zeros((count + 1, nodes + 1), np.int64)
        best[0, 0] = 0.0
        for taken in range(1, count + 1):
            totals = best[taken - 1, :nodes, None] + self.costs
            back[taken] = totals.argmin(axis=0)
            best[taken] = totals.min(axis=0)
        node, path = nodes, []
        for taken in range(count, 0, -1):
            node = int(back[taken, node])
            path.append(int(self.timesteps[node]))
        return tuple(path[::-1])


def teach(sampler: Sampler, seeds: list[int], image: bool, t_start: int) -> Trajectory:
    """Run the teacher: GRID calls of DDIM without noise, from the start image at t_start or from noise."""
    seen: list[tuple[int, Any, Any]] = []

    def keep(info: StepInfo) -> None:
        seen.append((info.timestep, info.x.astype(np.float64), info.x0.astype(np.float64)))

    batch = sampler.sample(
        seed=seeds, steps=min(GRID, t_start + 1), method="ddim", eta=0.0, clip=False, spacing="trailing",
        t_start=t_start if image else None, callback=keep, setting="plain",
    )  # fmt: skip
    name = sampler.bundle.manifest.pipeline.state.centre
    centre = 0.0 if name is None else batch.values[name].astype(np.float64)
    alpha_bar = sampler.bundle.manifest.schedule.schedule().alpha_bar
    timesteps = batch.timesteps
    # What a callback sees after a row is the x of the next timestep; the first x follows from the second.
    levels = np.append(alpha_bar[timesteps], 1.0)
    after = [x - centre for _, x, _ in seen[:-1]] + [seen[-1][2]]
    clean = [x0 for _, _, x0 in seen]
    noise = [
        (x - np.sqrt(level) * x0) / np.sqrt(1.0 - level)
        for x, x0, level in zip(after[:-1], clean[:-1], levels[1:-1], strict=True)
    ]
    costs = np.full((len(clean), len(clean) + 1), np.inf)
    for i, x0 in enumerate(clean):
        for j in range(i + 1, len(clean) + 1):
            found = np.sqrt(levels[j]) * x0 + (np.sqrt(1.0 - levels[j]) * noise[i] if j < len(clean) else 0.0)
            costs[i, j] = np.sqrt(np.mean(np.square(found - after[j - 1])))
    return Trajectory(timesteps, costs)
