"""What does a run hand back? The images, everything they were made from, and where the time went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Setting:
    """One complete few-step setting: the arguments of `build_step_table`, the guidance weight and the latents' prior.

    prior: "bundle" (the density fitted to the VAE) or "standard", N(0, I); None where no latent was drawn.
    """

    steps: int
    method: str = "ddim"
    spacing: str | None = None
    eta: float = 0.0
    t_start: int | None = None
    temperature: float = 1.0
    guidance: float = 0.0
    variance: str = "fixedlarge"
    clip: bool = True
    prior: str | None = None


@dataclass
class Timings:
    """Wall-clock milliseconds of one run, by stage; a run in several chunks reports sums over its chunks.

    `first_step_ms` and `other_steps_ms` time the denoiser alone: the first call of a shape may pay for a
    runtime's one-off preparation, so it is kept apart. `noise_ms` is the drawing of z and x_T; the steps'
    noise is made inside the update. `network_calls` counts denoiser evaluations, `chunks` the pieces that the
    batch was cut into.

    On a GPU the times are the device's own (CUDA events), a step's time includes its update, and `launch` says how
    the last chunk ran: "graph" (one launch of the captured chain), "plain" (call by call: a shape's first run, or with a
    callback), or "plain: " and why the chain could not be captured. Elsewhere `launch` is empty.
    """

    vae_ms: float = 0.0
    table_ms: float = 0.0
    noise_ms: float = 0.0
    first_step_ms: float = 0.0
    other_steps_ms: list[float] = field(default_factory=list)
    update_ms: float = 0.0
    post_ms: float = 0.0
    total_ms: float = 0.0
    network_calls: int = 0
    chunks: int = 0
    launch: str = ""

    @property
    def network_ms(self) -> float:
        """Milliseconds inside the denoiser, all steps together."""
        return self.first_step_ms + sum(self.other_steps_ms)

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the `with` block to the field `stage`."""
        started = perf_counter()
        try:
            yield
        finally:
            setattr(self, stage, getattr(self, stage) + 1e3 * (perf_counter() - started))

    def add_step(self, step: int, milliseconds: float) -> None:
        """Book `milliseconds` of denoiser time to `step` (0 is the first)."""
        if step == 0:
            self.first_step_ms += milliseconds
        elif step <= len(self.other_steps_ms):
            self.other_steps_ms[step - 1] += milliseconds
        else:
            self.other_steps_ms.append(milliseconds)

    def as_dict(self) -> dict[str, Any]:
        """The same figures as plain numbers and lists, for JSON."""
        return {**asdict(self), "network_ms": self.network_ms}


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after a step: `step` counts from 0 to `steps` - 1, `timestep` falls to 0.

    `x` (x_{t-1}) and `x0` (this step's prediction of the image) are read-only float32 [n, 3, H, W] views of
    buffers that the next step overwrites: copy what you keep. `first` is the index in the batch of the first
    of the n samples (a large batch runs in chunks).
    """

    step: int
    steps: int
    timestep: int
    x: F32
    x0: F32
    first: int = 0


@dataclass(frozen=True)
class Batch:
    """The result of a run over N samples; every array is the caller's own.

    images     uint8 [N, H, W, 3]
    recon      uint8 [N, H, W, 3], the condition image (the VAE's reconstruction, or what `refine` was given);
               None for an unconditional model
    z          float32 [N, z_dim], the latent; None where no latent took part
    x          float32 [N, 3, H, W], the samples in [-1, 1] before rounding (the last step is clipped unless
               clip=False)
    seeds      uint64 [N]: sample i again is `sample(seed=int(seeds[i]))`
    timesteps  int64 [S], in the order used (descending)
    """

    images: U8
    recon: U8 | None
    z: F32 | None
    x: F32
    seeds: npt.NDArray[np.uint64]
    timesteps: npt.NDArray[np.int64]
    setting: Setting
    timings: Timings

    def __len__(self) -> int:
        return int(self.images.shape[0])
