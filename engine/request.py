"""One checked request on its way to a chain, and what the chain hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.result import F32, U8, Setting, StepInfo
from engine.solver.table import StepTable

Array = Any  # a numpy array, or a DeviceArray where the backend runs on a device
Watch = Callable[[StepInfo], object]
FINISH = object()  # a watcher's answer, on the host: the row's x0 is the result, the rows after it are left out


@dataclass(frozen=True)
class Request:
    """n checked samples.

    inputs      {declared input: [n, ...]}, all that are used; the drawn one is in it, drawn or given
    given       {value of the pipeline: float32 [n, ...]}: values that stand in for what `before` would make
    x_T         [n or 1, C, H, W], the unit Gaussian that start's k_noise multiplies; None: of the seeds' own stream
    noise       float32 [rows, n or 1, C, H, W] in place of the seeds' streams
    start       float32 [n, C, H, W] that start's k_start multiplies; None: the pipeline's start value
    watch       called after every row; a true answer stops the run
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
    watch: Watch | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def lanes(self) -> int:
        """Lanes of the network: 2 with guidance."""
        return self.table.lanes

    def part(self, begin: int, end: int) -> Request:
        """Samples begin..end of this request; arrays shared by the batch stay shared."""
        n = len(self.seeds)
        if begin == 0 and end >= n:
            return self

        def cut(array: Array | None) -> Array | None:
            return array if array is None or len(array) != n else array[begin:end]

        noise = self.noise
        if noise is not None and noise.shape[1] == n:
            noise = noise[:, begin:end]
        return replace(
            self,
            seeds=self.seeds[begin:end],
            inputs={name: cut(array) for name, array in self.inputs.items()},
            given={name: cut(array) for name, array in self.given.items()},
            x_T=cut(self.x_T),
            noise=noise,
            start=cut(self.start),
            first=self.first + begin,
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
