"""The inputs that int8 is calibrated on: what the network is really asked while this model samples.

Post-training quantization for diffusion models (PTQ4DM, Shang et al. 2023) makes two points. Activations change with the
timestep, so inputs from one timestep, or images noised in one go, give scales that clip or waste levels elsewhere: inputs
must come from denoising runs. And they need not be spread evenly: x near the image decides what is seen, so the paper
draws timesteps from a normal distribution around a mean below T / 2 and cuts it at 0 and T, which leans to small t without
leaving the large ones out. Here: chains of the setting that the bundle records and of ten DDIM steps, run in float32 with
torch, and of every chain the states nearest to timesteps drawn so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.bundle.inputs import EACH_STEP
from engine.bundle.tensors import BATCH
from engine.errors import ExportError
from engine.solver import noise as noises
from engine.solver.feeds import step_feeds
from engine.solver.table import StepTable, build_step_table
from export.families.base import Model
from export.graphs.reference import WholeSampler
from export.graphs.roles import Inputs

LANES = 4  # images sampled at once, of seeds 0..3
STATES = 24  # inputs kept for calibration, over all chains
SEED = 0
NORMAL, UNIFORM = DRAWS = ("normal", "uniform")  # how timesteps are drawn
MEAN, DEVIATION = 0.4, 0.5  # of the normal draw, in units of T: PTQ4DM takes a mean below T / 2 and this deviation


@dataclass(frozen=True)
class States:
    """Inputs of the step's network by name, [K, ...] each, and the timestep of each state."""

    inputs: Mapping[str, torch.Tensor]
    timesteps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.timesteps)

    def part(self, index: slice) -> States:
        """Some of the states."""
        return States({name: value[index] for name, value in self.inputs.items()}, self.timesteps[index])

    def batches(self, size: int) -> Iterator[States]:
        """All states, `size` at a time."""
        for begin in range(0, len(self), size):
            yield self.part(slice(begin, begin + size))


@dataclass(frozen=True)
class Chain:
    """A chain that was run: the timesteps of its rows, int64 [R], what the network was asked at each, and the final x,
    float32 [N, C, H, W]."""

    timesteps: np.ndarray
    asked: list[Inputs]
    x: torch.Tensor

    def states(self, count: int, draw: str, T: int, rng: np.random.Generator) -> States:
        """`count` of what was asked: at the row nearest to a drawn timestep, samples in turn."""
        rows = [int(np.abs(self.timesteps - t).argmin()) for t in sorted(self._drawn(count, draw, T, rng))]
        samples = [(self.asked[row], number % max(map(len, self.asked[row].values()))) for number, row in enumerate(rows)]
        gather = {name: torch.stack([call[name][i % len(call[name])] for call, i in samples]) for name in self.asked[0]}
        return States(gather, tuple(int(self.timesteps[row]) for row in rows))

    def _drawn(self, count: int, draw: str, T: int, rng: np.random.Generator) -> list[float]:
        last = float(self.timesteps.max())
        wanted: list[float] = []
        while len(wanted) < count:
            t = rng.normal(MEAN * T, DEVIATION * T) if draw == NORMAL else rng.uniform(0, last)
            if 0 <= t <= last:  # cut, not clamped: clamping would pile a third of the draws onto t = 0
                wanted.append(t)
        return wanted


def trajectory_states(model: Model, draw: str = NORMAL, seed: int = SEED) -> States:
    """STATES inputs from real chains, with the timesteps that the module's text argues for; the same every time.

    draw: of DRAWS; seed: the first of LANES seeds of the chains, and of what is drawn from them.
    """
    chains = run_chains(model, seed)
    count, T = STATES // len(chains), model.schedule.T
    parts = [chain.states(count, draw, T, np.random.default_rng([seed, number])) for number, chain in enumerate(chains)]
    return joined(parts)


def joined(parts: Sequence[States]) -> States:
    """All states of some."""
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    return States(inputs, tuple(t for part in parts for t in part.timesteps))


def run_chains(model: Model, seed: int) -> list[Chain]:
    """LANES images from `seed` on in float32 with torch: in the recorded setting, and in ten plain DDIM steps."""
    plain = {"steps": min(10, model.schedule.T), "method": "ddim", "spacing": "linspace"}
    return [_run(model, _table(model, **options), seed) for options in (model.defaults, plain)]


def _table(model: Model, **options: Any) -> StepTable:
    state = model.wiring.state
    return build_step_table(
        model.schedule.schedule(),
        prediction=model.prediction,
        centred=state.centre is not None,
        clip=state.clip,
        variance=model.variance,
        **options,
    )


def _run(model: Model, table: StepTable, seed: int) -> Chain:
    seeds = noises.resolve_seeds(seed, LANES)
    shape = model.wiring.state.shape
    feeds = step_feeds(table) | {"x_T": noises.initial(seeds, shape), "noise": np.zeros((1, LANES, *shape), np.float32)}
    if table.stochastic:
        feeds["noise"] = np.stack([noises.step_noise(seeds, row, shape) for row in range(len(table.rows))])
    asked: list[Inputs] = []
    whole = WholeSampler(model.wiring, model.roles, lambda _, inputs: asked.append(dict(inputs)))
    feeds |= _inputs(model, seeds, len(table.rows))
    with torch.inference_mode():
        x = whole(**{name: torch.from_numpy(np.array(value)) for name, value in feeds.items()})[0]
    return Chain(table.timesteps, asked, x)


def _inputs(model: Model, seeds: noises.Seeds, rows: int) -> dict[str, np.ndarray]:
    """The declared inputs: drawn from the seeds; others at random within their range."""
    rng = np.random.default_rng(SEED)
    given: dict[str, np.ndarray] = {}
    for spec in model.input_specs:
        if spec.draw == EACH_STEP:
            given[spec.name] = noises.fresh(seeds, rows, tuple(int(d) for d in spec.sample[1:]))
            continue
        if spec.draw is not None:
            given[spec.name] = noises.drawn(seeds, tuple(int(d) for d in spec.sample))
            continue
        if any(isinstance(d, str) and d != BATCH for d in spec.shape):
            raise ExportError(
                f"int8 calibration: found the input {spec.name} of free shape {list(spec.shape)}, expected fixed "
                "dimensions; leave int8 out of --precision"
            )
        low, high = spec.range or (-1.0, 1.0)
        size = (len(seeds), *(int(d) for d in spec.sample))
        if spec.dtype == "int64":
            given[spec.name] = rng.integers(math.ceil(low), math.floor(high) + 1, size)
        else:
            given[spec.name] = rng.uniform(low, high, size).astype(np.float32)
    return given
