"""One checked request on its way to a chain, and what the chain hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError, Cancelled
from engine.result import F32, U8, Setting, StepInfo
from engine.solver.table import StepTable

Array = Any  # a numpy array, or a DeviceArray where the backend runs on a device
Watch = Callable[[StepInfo], object]
FINISH = object()  # a watcher's answer, on the host: the row's x0 is the result, the rows after it are left out


@dataclass(frozen=True)
class Blend:
    """What x is replaced by where it is known: before each step, and not after the last,

        x <- keep (signal known + c + sigma n) + (1 - keep) x
    with fresh noise n, and the centre c where there is one (Lugmayr et al. 2022, RePaint, eq. 8).

    known          float32 [n, C, H, W], the clean state
    keep           float32 [n or 1, 1, H, W], 1 where it is known
    signal, sigma  float32 [rows]: sqrt(alpha_bar) and sqrt(1 - alpha_bar) of x before each row
    noise          float32 [rows, n or 1, C, H, W] in place of the seeds' own streams
    """

    known: F32
    keep: F32
    signal: F32
    sigma: F32
    noise: F32 | None


@dataclass(frozen=True)
class Request:
    """n checked samples.

    inputs      {declared input: [n, ...]}, all that are used; the drawn one is in it, drawn or given
    given       {value of the pipeline: float32 [n, ...]}: values that stand in for what `before` would make
    x_T         [n or 1, C, H, W], the unit Gaussian that start's k_noise multiplies; None: of the seeds' own stream
    noise       float32 [rows, n or 1, C, H, W] in place of the seeds' streams
    start       float32 [n, C, H, W] that start's k_start multiplies; None: the pipeline's start value
    blend       what is known of the state
    watch       called after every row; a true answer stops the run
    stop        asked between rows or more seldom; a true answer stops the run
    first       index in the batch of the first of these samples: a large batch runs in chunks
    """

    table: StepTable
    setting: Setting
    seeds: npt.NDArray[np.uint64]
    inputs: Mapping[str, Array] = field(default_factory=dict)
    given: Mapping[str, Array] = field(default_factory=dict)
    x_T: Array | None = None
    noise: F32 | None = None
    start: F32 | None = None
    blend: Blend | None = None
    watch: Watch | None = None
    stop: Callable[[], object] | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def lanes(self) -> int:
        """Lanes of the network: 2 with guidance."""
        return self.table.lanes

    def blended(self, blend: Blend) -> Request:
        """The same with what is known of its state."""
        self.check_on_host("what is known is blended in")
        return replace(self, blend=blend)

    def check_on_host(self, why: str) -> None:
        """Refuse arrays on a device where something is done on the host."""
        for name, array in (*self.inputs.items(), ("x_T", self.x_T)):
            if array is not None and not isinstance(array, np.ndarray):
                raise ArgumentError(f"{name} lies on a device, but {why} on the host: copy it there")

    def part(self, begin: int, end: int) -> Request:
        """Samples begin..end of this request; arrays shared by the batch stay shared."""
        n = len(self.seeds)
        if begin == 0 and end >= n:
            return self

        def cut(array: Array | None) -> Any:
            return array if array is None or len(array) != n else array[begin:end]

        def cut_rows(array: F32 | None) -> F32 | None:
            return array if array is None or array.shape[1] != n else array[:, begin:end]

        blend = self.blend
        if blend is not None:
            known, keep = cut(blend.known), cut(blend.keep)
            blend = replace(blend, known=known, keep=keep, noise=cut_rows(blend.noise))
        return replace(
            self,
            seeds=self.seeds[begin:end],
            inputs={name: cut(array) for name, array in self.inputs.items()},
            given={name: cut(array) for name, array in self.given.items()},
            x_T=cut(self.x_T),
            noise=cut_rows(self.noise),
            start=cut(self.start),
            blend=blend,
            first=self.first + begin,
        )


def cancelled(who: str, table: StepTable, step: int) -> Cancelled:
    """The error of a run that was stopped when so many rows were done."""
    at = f" (timestep {int(table.timesteps[step - 1])})" if step else ""
    return Cancelled(
        f"{who} stopped the run after step {step} of {len(table)}{at}. No batch was made; the sampler is ready for the next "
        "call.",
        step,
        len(table),
    )


@dataclass(frozen=True)
class Outcome:
    """Finished samples, in buffers that the next run of the same chain overwrites.

    images  uint8 [n, H, W, C]
    x       float32 [n, C, H, W], the state after the last row
    values  the declared inputs that took part, and the start value if the pipeline has one
    """

    images: U8
    x: F32
    values: dict[str, npt.NDArray[Any]]
