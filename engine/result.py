"""Results of a run: the images, everything they were made from, and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import kernels
from engine.argument_checks import Numbers
from engine.errors import ArgumentError, did_you_mean
from engine.solver.timesteps import RHO

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Setting:
    """One complete few-step setting: the arguments of `build_step_table`, and what the drawn input came from.

    timesteps: falling, where they were listed; None where `spacing` chose them (None: its default).
    eta, noise_scale, eps_scale: one number, or a tuple of one a step.
    guidance_interval: (low, high), both included; None: guidance in every row. guide_interval: the same of guides.
    guide_mode: a name of engine.solver.guides.MODES. regularise: one of engine.solver.regulariser's.
    regularise_interval: (low, high), both included, of the timesteps at which the regulariser runs; None: all.
    prior: "bundle" (its fitted density) or "standard", N(0, I); None where no input was drawn.
    """

    steps: int
    timesteps: tuple[int, ...] | None = None
    spacing: str | None = None
    rho: float = RHO
    method: str = "ddim"
    eta: Numbers = 0.0
    t_start: int | None = None
    temperature: float = 1.0
    noise_scale: Numbers = 1.0
    eps_scale: Numbers = 1.0
    guidance: float = 0.0
    guidance_interval: tuple[int, int] | None = None
    variance: str = "fixedlarge"
    quantize_denoised: bool = False
    guide_scale: float = 0.0
    guide_mode: str = "constant"
    guide_interval: tuple[int, int] | None = None
    regularise: str = "off"
    regularise_interval: tuple[int, int] | None = None
    clip: bool = True
    prior: str | None = None


@dataclass
class Timings:
    """Wall-clock milliseconds of one run, by stage; a run in several chunks reports sums over its chunks.

    `before_ms` and `after_ms` are the pipeline's graphs around the loop, `rows_ms` its table of timesteps.
    `first_step_ms` and `other_steps_ms` time each row's network, and its guide: the first call of a shape may pay for a
    runtime's one-off preparation, so it is kept apart. `noise_ms` is the drawing of inputs and x_T; the steps'
    noise is made inside the update. `network_calls` counts evaluations of the step's network and of a regulariser,
    `chunks` the pieces that the batch was cut into.

    On a GPU the times are the device's own (CUDA events), a step's time includes its update, and `launch` says how
    the last chunk ran: "graph" (one launch of the captured chain), "plain" (call by call: a shape's first run, or with a
    callback), or "plain: " and why the chain could not be captured. Elsewhere `launch` is empty.
    """

    before_ms: float = 0.0
    rows_ms: float = 0.0
    noise_ms: float = 0.0
    first_step_ms: float = 0.0
    other_steps_ms: list[float] = field(default_factory=list)
    update_ms: float = 0.0
    after_ms: float = 0.0
    post_ms: float = 0.0
    total_ms: float = 0.0
    network_calls: int = 0
    chunks: int = 0
    launch: str = ""

    @property
    def network_ms(self) -> float:
        """Milliseconds inside the step's network, all steps together."""
        return self.first_step_ms + sum(self.other_steps_ms)

    def book(self, stage: str, since: float) -> float:
        """Add the time since then (of perf_counter) to the field `stage`; the time that it is now."""
        now = perf_counter()
        setattr(self, stage, getattr(self, stage) + 1e3 * (now - since))
        return now

    def add_steps(self, milliseconds: Sequence[float]) -> None:
        """Book the network's times of the first of the steps, one each."""
        first, *others = milliseconds
        self.first_step_ms += first
        self.other_steps_ms = list(map(sum, zip_longest(self.other_steps_ms, others, fillvalue=0.0)))

    def add(self, other: Timings) -> None:
        """Book the figures of a further run, as if its chunks were this one's."""
        self.add_steps((other.first_step_ms, *other.other_steps_ms))
        stages = ("before_ms", "rows_ms", "noise_ms", "update_ms", "after_ms", "post_ms", "total_ms")
        for name in (*stages, "network_calls", "chunks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.launch = other.launch

    def as_dict(self) -> dict[str, Any]:
        """The same figures as plain numbers and lists, for JSON."""
        return {**asdict(self), "network_ms": self.network_ms}


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after a row of the table: `step` counts from 0 to `steps` - 1, `timestep` falls to 0.

    `x` (x_{t-1}) and `x0` (this row's prediction of it) are read-only float32 [n, C, H, W] views of
    buffers that the next step overwrites: copy what you keep. `first` is the index in the batch of the first
    of the n samples (a large batch runs in chunks). `images()` makes a preview of x0. `stage` counts the stages of a cascade
    from 0.
    """

    step: int
    steps: int
    timestep: int
    x: F32
    x0: F32
    first: int
    pixels_of: Callable[[F32], U8] = field(repr=False)  # of a state
    stage: int = 0

    def images(self) -> U8:
        """x0 as pixels, uint8 [n, H, W, C], the caller's own; the pipeline's graphs after the loop (a decoder, say) run for
        it. To be called from within the callback."""
        return self.pixels_of(self.x0)


@dataclass(frozen=True)
class Deadline:
    """What became of a budget of time.

    budget_ms, expected_ms  what was asked for, and what 99 of 100 runs of the chosen setting keep
    took_ms                 from the call of `sample` to its return
    calls, done             of the network: those of the setting, and those that were made (fewer with anytime)
    """

    budget_ms: float
    expected_ms: float
    took_ms: float
    calls: int
    done: int

    @property
    def kept(self) -> bool:
        """Whether the images were there in time."""
        return self.took_ms <= self.budget_ms


@dataclass(frozen=True)
class Batch:
    """The result of a run over N samples; every array is the caller's own.

    images     uint8 [N, H, W, C]
    x          float32 [N, C, H, W], the state after the last step (within the pipeline's clip unless clip=False); where
               the pipeline decodes nothing, the images before rounding, in [-1, 1]
    values     {name: array [N, ...]}: the declared inputs that took part, drawn or given, and the image that the chain
               may start from, float32 [N, C, H, W]
    seeds      uint64 [N]: sample i again is `sample(seed=int(seeds[i]))`
    timesteps  int64 [rows], in the order used (falling): one a call of the network. Where images were encoded and decoded
               alone there are none, and the seeds are 0
    deadline   of a run with a budget of time
    """

    images: U8
    x: F32
    values: dict[str, npt.NDArray[Any]]
    seeds: npt.NDArray[np.uint64]
    timesteps: npt.NDArray[np.int64]
    setting: Setting
    timings: Timings
    start_name: str | None = None
    deadline: Deadline | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def pixels(self, name: str) -> U8:
        """A value of images, [N, C, H, W] in [-1, 1], as uint8 [N, H, W, C]; ArgumentError where there is none."""
        found = self.values.get(name)
        if found is None or found.ndim != 4 or found.dtype != np.float32:
            images = [key for key, value in self.values.items() if value.ndim == 4]
            raise ArgumentError(
                f"pixels: found {name!r}, expected a value of images: {', '.join(images) or 'this batch has none'}."
                f"{did_you_mean(name, images)}"
            )
        return kernels.to_uint8(np.ascontiguousarray(found))

    @property
    def start(self) -> U8 | None:
        """The image that the chain may start from (a first stage's reconstruction, say), uint8 [N, H, W, C], or None."""
        return None if self.start_name is None else self.pixels(self.start_name)
