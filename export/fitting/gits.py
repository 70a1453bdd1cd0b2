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
from export.fitting.objective import Conditions, Score

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


class Imitation:
    """Scores without images: how far a short chain ends from where the teacher takes the same noise."""

    def __init__(self, sampler: Sampler, seeds: list[int], options: dict[str, Any], conditions: Conditions) -> None:
        """options: the teacher's."""
        self.sampler, self.seeds, self.given = sampler, seeds, conditions.of(0, len(seeds))
        self.ends = sampler.sample(seed=seeds, **options, **self.given).x

    def score(self, options: dict[str, Any]) -> Score:
        """The mean squared difference, as `fd`; colour has no part in it."""
        found = self.sampler.sample(seed=self.seeds, **options, **self.given, clip=False).x
        return Score(float(np.square(found - self.ends, dtype=np.float64).mean()), 0.0, 0.0)


def teacher_options(image: bool, t_start: int, guidance: float = 0.0) -> dict[str, Any]:
    """The teacher's chain: GRID calls of DDIM without noise, from the start image at t_start or from noise."""
    return {
        "steps": min(GRID, t_start + 1), "spacing": "trailing", "method": "ddim", "eta": 0.0, "clip": False,
        "t_start": t_start if image else None, "guidance": guidance,
    }  # fmt: skip


def teach(sampler: Sampler, seeds: list[int], options: dict[str, Any], conditions: Conditions) -> Trajectory:
    """Run the teacher once, with `teacher_options`, and cost every step that a short chain could take."""
    seen: list[tuple[Any, Any]] = []

    def keep(info: StepInfo) -> None:
        seen.append((info.x.astype(np.float64), info.x0.astype(np.float64)))

    batch = sampler.sample(seed=seeds, callback=keep, **options, **conditions.of(0, len(seeds)))
    name = sampler.bundle.manifest.pipeline.state.centre
    centre = 0.0 if name is None else batch.values[name].astype(np.float64)
    alpha_bar = sampler.bundle.manifest.schedule.schedule().alpha_bar
    timesteps = batch.timesteps
    # What a callback sees after a row is the x of the next timestep; eps follows from that and x0.
    levels = np.append(alpha_bar[timesteps], 1.0)
    after = [x - centre for x, _ in seen[:-1]] + [seen[-1][1]]
    clean = [x0 for _, x0 in seen]
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
