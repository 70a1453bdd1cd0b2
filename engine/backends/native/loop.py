"""The arrays of a whole chain in the native engine, as the C struct takes them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.kernels.native_library import NONE, Steps
from engine.result import F32


@dataclass(frozen=True)
class Loop:
    """One chain of S rows over n samples in L lanes; every array C-contiguous float32 but seeds (uint64).

    x_port, row_port, e_port, v_port   names of the program's ports; row_port and v_port None where it has none
    constants     {port: [L * n, ...]} of what stays the same in all steps
    embeddings    [S, 1 or L * n, R] for row_port
    rows, weights [S, 31], [S, L] of the step table
    x             [n, C, H, W], in and out
    x_in          [L * n, ...] scratch, None for one lane whose c_in is 1 throughout
    e, v          [L * n, ...] scratch, v None without v_port
    centre        [n, ...] or None;  y [n, ...] or None;  history [3, n, ...] or None
    seeds [n] or noise [S, n or 1, ...]
    """

    x_port: str
    row_port: str | None
    e_port: str
    v_port: str | None
    constants: Mapping[str, npt.NDArray[np.generic]]
    embeddings: F32
    rows: F32
    weights: F32
    x: F32
    x_in: F32 | None
    e: F32
    v: F32 | None
    centre: F32 | None
    y: F32 | None
    history: F32 | None
    seeds: npt.NDArray[np.uint64] | None
    noise: F32 | None

    def call(self, ports: Sequence[str], network_ms: F64, update_ms: F64) -> tuple[Steps, Any]:
        """The struct for a program with these ports, and what must live as long as it."""
        index = {name: at for at, name in enumerate(ports)}
        numbers = (ctypes.c_int32 * len(self.constants))(*[index[port] for port in self.constants])
        pointers = (ctypes.c_void_p * len(self.constants))(*[array.ctypes.data for array in self.constants.values()])
        lanes = self.weights.shape[1]
        call = Steps(
            x_port=index[self.x_port],
            row_port=NONE if self.row_port is None else index[self.row_port],
            e_port=index[self.e_port],
            v_port=NONE if self.v_port is None else index[self.v_port],
            constants_count=len(self.constants),
            constant_ports=ctypes.cast(numbers, ctypes.c_void_p),
            constants=ctypes.cast(pointers, ctypes.c_void_p),
            steps=len(self.rows),
            row_count=self.embeddings.shape[1],
            lanes=lanes,
            samples=len(self.x),
            embeddings=_at(self.embeddings),
            rows=_at(self.rows),
            weights=_at(self.weights),
            x=_at(self.x),
            x_in=_at(self.x_in),
            c=_at(self.centre),
            e=_at(self.e),
            v=_at(self.v),
            x0=None,
            y=_at(self.y),
            h=_at(self.history),
            seeds=_at(self.seeds),
            noise=_at(self.noise),
            noise_shared=int(self.noise is not None and self.noise.shape[1] != len(self.x)),
            first_step=0,
            step_ms=_at(network_ms),
            update_ms=_at(update_ms),
            failed_step=NONE,
        )
        return call, (self, numbers, pointers)


F64 = npt.NDArray[np.float64]


def _at(array: npt.NDArray[np.generic] | None) -> int | None:
    return None if array is None else array.ctypes.data
