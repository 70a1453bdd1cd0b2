"""How may a backend run a whole chunk by itself? What it is given, what it gives back, and the interface between.

A backend whose graphs live on a device takes the chain there: nothing comes back to the host between the steps. The
others leave it to the runner and engine/chain.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.result import F32, U8, StepInfo, Timings
from engine.solver.table import StepTable

Values = Any  # float32: a numpy array, or a DeviceArray where the backend runs on a device


@dataclass(frozen=True)
class Chunk:
    """n checked samples; of the arrays those are None that the backend draws (z, x_T, noise) or derives (cond).

    z      [n, z_dim]
    x_T    [n or 1, C, H, W]
    noise  [S, n or 1, C, H, W]
    cond, image  [n, C, H, W] in [-1, 1]: a given condition, a given image to start from
    watch  called after every step, as by engine/chain.py; None when nobody looks
    """

    table: StepTable
    seeds: npt.NDArray[np.uint64]
    guidance: float = 0.0
    z: Values | None = None
    x_T: Values | None = None
    noise: F32 | None = None
    cond: F32 | None = None
    image: F32 | None = None
    watch: Callable[[StepInfo], object] | None = None
    first: int = 0
    where: str = ""


@dataclass(frozen=True)
class Outcome:
    """A finished chunk, in buffers that the next one overwrites; recon and z are None where there is none."""

    images: U8
    recon: U8 | None
    x: F32
    z: F32 | None


class ChunkEngine(Protocol):
    """What a backend module's `chunk_engine(bundle, graphs)` returns. One thread at a time."""

    def limit(self, guided: bool) -> int:
        """The most samples that a chunk may have."""

    def run(self, chunk: Chunk, timings: Timings) -> Outcome:
        """The chunk's results on the host. Raises what engine/chain.py raises, and can be called again after that."""

    def results(self, n: int, *, recon: bool, z: bool) -> dict[str, Any]:
        """Room on the device for the results of n samples, by name (images, recon, x, z), which the caller owns."""

    def run_into(self, chunk: Chunk, timings: Timings, into: dict[str, Any]) -> None:
        """The chunk's results into `into`, on the device."""

    def borrow(self, value: Any, name: str) -> Any:
        """Somebody's array on the device as this engine takes it; it waits until they have written it."""

    def wait_for(self, stream: int) -> None:
        """Start nothing before what was enqueued in a caller's stream until now is done."""

    def close(self) -> None:
        """Give back everything but the graphs."""
