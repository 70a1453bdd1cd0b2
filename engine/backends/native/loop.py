"""A chain as the native engine takes it: one struct for a table over the buffers of a batch shape, fed anew for each run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from engine.backends.workspace import Workspace
from engine.bundle.pipeline import ROWS, VARIANCE, CallSpec, E, X
from engine.kernels.native_library import NONE, Slice, Steps
from engine.kernels.operands import address, address_or_none
from engine.result import F32
from engine.solver.table import StepTable


class Loop:
    """The rows of a table over the n samples of a workspace, whose x goes from the start to x_0 in place.

    step: the call of the network; ports: those of its program, in their order.
    Attributes: `table`, `call` (the struct), and what a run leaves: `step_ms`, of the network, and `update_ms`, of all rows.
    """

    def __init__(self, step: CallSpec, ports: Sequence[str], table: StepTable, work: Workspace) -> None:
        work.begin(table, shows_x0=False)
        number = {value: ports.index(port) for port, value in (*step.inputs.items(), *step.outputs.items())}
        constants = [ports.index(port) for port, value in step.inputs.items() if value not in (X, ROWS)]
        self.table = table
        self.step_ms = (ctypes.c_double * len(table))()
        self.update_ms = ctypes.c_double()
        self._constant_ports = (ctypes.c_int32 * len(constants))(*constants)
        self._constants = (ctypes.c_void_p * len(constants))()
        rows, weights = np.ascontiguousarray(table.rows), np.ascontiguousarray(table.weights)
        v = np.empty_like(work.e) if VARIANCE in number else None
        self._held = [work, rows, weights, v]  # what the struct points into
        self.call = Steps(
            x_port=number[X],
            row_port=number.get(ROWS, NONE),
            e_port=number[E],
            v_port=number.get(VARIANCE, NONE),
            constants_count=len(constants),
            constant_ports=ctypes.addressof(self._constant_ports),
            constants=ctypes.addressof(self._constants),
            steps=len(table),
            lanes=work.lanes,
            samples=work.n,
            rows=address(rows),
            weights=address(weights),
            x=address(work.x),
            x_in=address(work.x_in) if work.lanes > 1 or table.scales_x else None,
            e=address(work.e),
            v=address_or_none(v),
            y=address_or_none(work.y) if table.carries_y else None,
            h=address_or_none(work.history) if table.pushes else None,
            step_ms=ctypes.addressof(self.step_ms),
            update_ms=ctypes.addressof(self.update_ms),
        )

    def feed(
        self,
        embeddings: F32,
        constants: Mapping[str, npt.NDArray[np.generic]],
        centre: F32 | None = None,
        seeds: npt.NDArray[np.uint64] | None = None,
        noise: F32 | None = None,
    ) -> None:
        """What the next run is about, every array C-contiguous and held by the caller until it is over.

        embeddings [S, 1 or L * n, R], constants {port: [L * n, ...]} in the order of the step's inputs, centre [n, ...], and
        the noise [S, n or 1, ...] or the seeds [n] that it is drawn from.
        """
        call = self.call
        call.row_count = embeddings.shape[1]
        call.embeddings = None if call.row_port == NONE else address(embeddings)
        for index, array in enumerate(constants.values()):
            self._constants[index] = address(array)
        call.c = None if centre is None else address(centre)
        call.seeds = None if seeds is None else address(seeds)
        call.noise = None if noise is None else address(noise)
        call.noise_shared = noise is not None and noise.shape[1] != call.samples
        call.failed_step, call.slice = NONE, Slice()
        self.update_ms.value = 0.0
