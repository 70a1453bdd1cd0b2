"""On which inputs is int8 calibrated? On what the denoiser is really asked while this model samples.

Post-training quantization for diffusion models (PTQ4DM, Shang et al. 2023) makes two points. Activations change with the
timestep, so inputs from one timestep, or images noised in one go, give scales that clip or waste levels elsewhere: inputs
must come from denoising runs. And they need not be spread evenly: x near the image decides what is seen, so the paper
draws timesteps from a normal distribution around a mean below T / 2 and cuts it at 0 and T, which leans to small t without
leaving the large ones out. Here: chains of the setting that the bundle records and of ten DDIM steps, run in float32 with
torch, and of every chain the states nearest to timesteps drawn so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from engine.backends import Graph
from engine.chain import Chain, run_chain, start_state
from engine.network import Workspace
from engine.result import F32, Timings
from engine.solver import noise as noises
from engine.solver.schedule import Schedule
from engine.solver.table import StepTable, build_step_table
from export.families.architecture import Architecture
from export.graphs.roles import TimestepTable
from export.models.unet import UNet
from export.models.vae import VAE

LANES = 4  # images sampled at once, of seeds 0..3
STATES = 24  # inputs kept for calibration, over all chains
SEED = 0
MEAN, DEVIATION = 0.4, 0.5  # of the drawn timesteps, in units of T: PTQ4DM takes a mean below T / 2 and this deviation


@dataclass(frozen=True)
class States:
    """Inputs of the denoiser, one a lane: x and cond [K, 3, H, W] (cond None without a condition), row [K, R]."""

    x: torch.Tensor
    cond: torch.Tensor | None
    row: torch.Tensor
    timesteps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.x)

    def part(self, index: slice) -> States:
        """Some of the lanes."""
        cond = None if self.cond is None else self.cond[index]
        return States(self.x[index], cond, self.row[index], self.timesteps[index])

    def batches(self, size: int) -> Iterator[States]:
        """All lanes, `size` at a time."""
        for begin in range(0, len(self), size):
            yield self.part(slice(begin, begin + size))


@dataclass
class _Recorder:
    """Stands where the chain expects a loaded graph: evaluates in torch and keeps what it was asked."""

    unet: UNet
    asked: list[dict[str, F32]] = field(default_factory=list)

    def __call__(self, **arrays: F32) -> dict[str, F32]:
        kept = {name: array.copy() for name, array in arrays.items()}
        self.asked.append(kept)
        tensors = {name: torch.from_numpy(array) for name, array in kept.items()}
        with torch.inference_mode():
            eps = self.unet.denoise(tensors["x"], tensors.get("cond"), tensors["row"])
        return {"eps": np.ascontiguousarray(eps.numpy())}


def trajectory_states(architecture: Architecture, unet: UNet, vae: VAE | None, table: TimestepTable) -> States:
    """STATES inputs from real chains, with the timesteps that the module's text argues for; the same every time."""
    chains = _settings(architecture)
    parts = []
    for number, (steps, guidance) in enumerate(chains):
        asked = _run(architecture, unet, vae, table, steps, guidance)
        count = STATES // len(chains)
        parts.append(_draw(asked, steps.timesteps, count, architecture.T, np.random.default_rng([SEED, number])))
    conds = [part.cond for part in parts if part.cond is not None]
    return States(
        torch.cat([part.x for part in parts]),
        torch.cat(conds) if conds else None,
        torch.cat([part.row for part in parts]),
        tuple(t for part in parts for t in part.timesteps),
    )


def _settings(architecture: Architecture) -> list[tuple[StepTable, float]]:
    """The step tables (and guidance) to run: the recorded setting, and ten plain DDIM steps."""
    recorded: dict[str, Any] = {key: value for key, value in architecture.defaults.items() if key != "guidance"}
    plain = {"steps": min(10, architecture.T), "method": "ddim", "spacing": "linspace"}
    schedule = Schedule(architecture.beta_1, architecture.beta_T, architecture.T)
    tables = [
        build_step_table(
            schedule, formulation=architecture.formulation, variance=architecture.variance, **options
        )
        for options in (recorded, plain)
    ]
    return [(tables[0], float(architecture.defaults.get("guidance", 0.0))), (tables[1], 0.0)]


def _run(
    architecture: Architecture, unet: UNet, vae: VAE | None, table: TimestepTable, steps: StepTable, guidance: float
) -> list[dict[str, F32]]:
    """Sample LANES images as the engine does, in float32 with torch; what the denoiser was asked at each step."""
    size = architecture.unet.image_size
    shape = (architecture.unet.out_channels, size, size)
    seeds = noises.resolve_seeds(SEED, LANES)
    work = Workspace(LANES, shape, conditional=architecture.unet.conditional, guided=guidance != 0.0)
    z = None
    if vae is not None:
        z = torch.from_numpy(noises.latent(seeds, (vae.spec.z_dim,)))
        if work.cond is not None:
            with torch.inference_mode():
                np.copyto(work.cond, (2 * vae.decode(z) - 1).numpy())
    start_state(steps.start, work, noises.initial(seeds, shape), work.cond)
    recorder = _Recorder(unet)
    chain = Chain(
        steps,
        cast(Graph, recorder),  # the loop only calls it
        _rows(table, steps, z, guided=work.guided),
        seeds=seeds,
        guidance=guidance,
        where="torch, float32",
    )
    run_chain(chain, work, Timings())
    return recorder.asked


def _rows(table: TimestepTable, steps: StepTable, z: torch.Tensor | None, *, guided: bool) -> F32:
    """The timestep table's rows as a run uses them: [S, 1, R], or with z-conditioning [S, lanes, R]."""
    timesteps = torch.from_numpy(np.ascontiguousarray(steps.timesteps, np.int64))
    with torch.inference_mode():
        if not isinstance(table.z_mlp, nn.Module) or z is None:
            return cast(F32, table(timesteps)[:, None, :].numpy())
        lanes = torch.cat([z, torch.zeros_like(z)]) if guided else z
        return cast(F32, table(timesteps, lanes).numpy())


def _draw(
    asked: list[dict[str, F32]], kept: np.ndarray, count: int, T: int, rng: np.random.Generator
) -> States:
    """`count` of the recorded lanes: at the step nearest to a drawn timestep, lanes in turn."""
    last = float(kept.max())
    wanted: list[float] = []
    while len(wanted) < count:
        t = rng.normal(MEAN * T, DEVIATION * T)
        if 0 <= t <= last:  # cut, not clamped: clamping would pile a third of the draws onto t = 0
            wanted.append(t)
    steps = [int(np.abs(kept - t).argmin()) for t in sorted(wanted)]
    lanes = [(asked[step], number % len(asked[step]["x"])) for number, step in enumerate(steps)]
    gather = {
        name: torch.from_numpy(np.stack([call[name][lane % len(call[name])] for call, lane in lanes])) for name in asked[0]
    }
    return States(gather["x"], gather.get("cond"), gather["row"], tuple(int(kept[step]) for step in steps))
