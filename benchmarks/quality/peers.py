"""The schedulers of diffusers on this engine's network: the same pictures where both have a solver, and their front.

A scheduler is handed the network's x0 of every state, which any of them takes ("sample" prediction); the state goes through
the engine one call at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import BenchmarkError
from engine import Sampler
from engine.solver import noise as noises

F32 = npt.NDArray[np.float32]
AGREEMENT = 1e-4  # of a chain's largest value: what two derivations in float32 may differ by


@dataclass(frozen=True)
class Peer:
    """A scheduler of diffusers, its options, and the engine's method of the same name if there is one."""

    name: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    method: str | None = None


MULTISTEP = {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero"}
PEERS = (
    Peer("DDIM", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": True}, "ddim"),
    Peer("DPM-Solver++ 2M", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **MULTISTEP}, "dpmpp_2m"),
    Peer("UniPC", "UniPCMultistepScheduler", {"solver_type": "bh2", **MULTISTEP}, "unipc_2"),
    Peer("DEIS", "DEISMultistepScheduler", {"solver_order": 2, "lower_order_final": True}),
)


class Network:
    """The x0 that a bundle's network predicts for states of some seeds; clip: limited as in the engine's own chains."""

    def __init__(self, sampler: Sampler, seeds: Sequence[int], clip: bool = False) -> None:
        self.sampler, self.seeds, self.clip = sampler, list(seeds), clip
        self.given = sampler.draw(seed=self.seeds) if sampler.bundle.manifest.drawn is not None else {}
        self.shape = sampler.bundle.manifest.pipeline.state.shape
        if sampler.bundle.manifest.pipeline.state.centre is not None:
            raise BenchmarkError(
                f"{sampler.bundle.path}: found a state around a centre, expected one around 0, as diffusers takes it"
            )

    def x0(self, x: F32, t: int) -> F32:
        """x0 [N, C, H, W] of a state at a timestep: a chain of one step without noise."""
        return self.sampler.sample(
            seed=self.seeds, x_T=x, timesteps=[t], method="ddim", eta=0.0, clip=self.clip, setting="plain", **self.given
        ).x

    def start(self) -> F32:
        """The start values of these seeds."""
        name = self.sampler.bundle.manifest.pipeline.state.start
        if name is None:
            raise BenchmarkError(f"{self.sampler.bundle.path}: found no start image, expected one; start from noise")
        found = self.sampler.sample(seed=self.seeds, steps=1, spacing="linspace", setting="plain").values[name]
        return np.asarray(found, np.float32)

    def noise(self) -> F32:
        """The x_T of these seeds."""
        return noises.initial(np.array(self.seeds, np.uint64), self.shape)


def make(peer: Peer, sampler: Sampler) -> Any:
    """The scheduler with the bundle's own betas."""
    try:
        import diffusers
    except ImportError as error:
        raise BenchmarkError(
            f"peers: found no diffusers ({error}), expected it; install it with: pip install 'diffusevae-engine[benchmark]'"
        ) from error
    betas = sampler.bundle.manifest.schedule.schedule().betas
    return getattr(diffusers, peer.scheduler)(
        num_train_timesteps=len(betas), trained_betas=betas.tolist(), prediction_type="sample", timestep_spacing="trailing",
        **peer.options,
    )  # fmt: skip


def chain(peer: Peer, network: Network, steps: int, t_start: int | None = None) -> tuple[F32, list[int]]:
    """The images [N, C, H, W] of a peer's chain and its timesteps; from noise, or from the start image at t_start."""
    import torch

    scheduler = make(peer, network.sampler)
    if t_start is None:
        scheduler.set_timesteps(steps)
        x = network.noise()
    else:
        # As its image-to-image pipelines: a longer chain, entered where its noise is that of t_start.
        T = scheduler.config.num_train_timesteps
        scheduler.set_timesteps(round(steps * T / (t_start + 1)))
        entry = len(scheduler.timesteps) - steps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(entry)
        alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[entry])])
        start = network.start()
        x = (np.sqrt(alpha_bar) * start + np.sqrt(1 - alpha_bar) * network.noise()).astype(np.float32)
    visited = scheduler.timesteps[-steps:]
    for t in visited:
        x0 = torch.from_numpy(network.x0(x, int(t)))
        x = scheduler.step(x0, t, torch.from_numpy(x)).prev_sample.numpy()
    return x, [int(t) for t in visited]
