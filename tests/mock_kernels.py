"""What the CUDA kernels do to memory when a mock launches them: by kernels/cuda/README.md, in the CPU kernels' bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine import kernels
from engine.kernels import ROW_FIELDS, cuda_module
from engine.kernels.operands import FULL

C_IN, PUSH = ROW_FIELDS.index("c_in"), ROW_FIELDS.index("push")


class MockKernels:
    """The kernels over `view`, the memory of the machine; `launcher` runs something else in their place."""

    view: Callable[[int, tuple[int, ...], Any], np.ndarray]
    launcher: Callable[[str, tuple[int, int, int], int, list[int]], None] | None = None

    def run_kernel(self, name: str, grid: tuple[int, int, int], words: list[int]) -> None:
        """One launch, done at once."""
        if self.launcher is not None:
            self.launcher(name, grid, cuda_module.BLOCK, words)
        else:
            getattr(self, f"_{name}")(grid, *words)

    def _optional(self, address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray | None:
        return self.view(address, shape, dtype) if address else None

    def _advance_table(self, table: int, row: int, width: int, step: int, steps: int) -> None:
        if table and row and step < steps:
            self.view(row, (width,), np.float32)[:] = self.view(table, (steps, width), np.float32)[step]

    def _store_inputs(self, x_in: int, copies: int, c_in: np.float32, x: np.ndarray) -> None:
        if x_in and copies:
            self.view(x_in, (copies, *x.shape), np.float32)[:] = c_in * x

    def _dv_finite(self, grid: Any, control: int, values: int, total: int, code: int) -> None:
        assert grid == cuda_module.launch_grid(total)
        if not np.isfinite(self.view(values, (total,), np.float32)).all():
            self._report(control, code)

    def _dv_start(
        self, grid: Any, control: int, rows: int, seeds: int, x_T: int, x_T_stride: int, start: int, centre: int, x: int,
        x_in: int, copies: int, table: int, row: int, width: int, samples: int, count: int,
    ) -> None:  # fmt: skip
        assert grid == cuda_module.launch_grid(count, samples)
        shape = (samples, count)
        if x_T:
            noise = self.view(x_T, shape if x_T_stride else (1, count), np.float32)
        else:
            noise = kernels.normal(self.view(seeds, (samples,), np.uint64).copy(), kernels.STREAM_X_T, 0, count)
        k_noise, k_start, k_centre = self.view(control, (8,), np.float32)[5:8]
        value = np.broadcast_to(noise, shape) * k_noise
        for k, source in ((k_start, start), (k_centre, centre)):
            if k != 0 and source:
                value = value + k * self.view(source, shape, np.float32)
        self.view(x, shape, np.float32)[:] = value
        steps = int(self.view(control, (8,), np.uint32)[3])
        self._store_inputs(x_in, copies, self.view(rows, (steps, len(ROW_FIELDS)), np.float32)[0, C_IN], value)
        self._advance_table(table, row, width, 0, steps)

    def _dv_update_plain(self, grid: Any, control: int, rows: int, *words: int) -> None:
        state = self.view(control, (8,), np.uint32)
        step, steps = int(state[0]), int(state[3])
        if step < steps and self.view(rows, (steps, len(ROW_FIELDS)), np.float32)[step, list(FULL)].any():
            self._report(control, cuda_module.BAD_FULL_ROW)
            return
        self._dv_update_full(grid, control, rows, *words, 0, 0, 0)

    def _dv_update_full(
        self, grid: Any, control: int, rows: int, weights: int, lanes: int, seeds: int, noise: int, row_stride: int,
        sample_stride: int, e: int, c: int, x: int, x_in: int, copies: int, x0: int, h: int, table: int, row: int,
        width: int, samples: int, count: int, y: int, g: int, v: int,
    ) -> None:  # fmt: skip
        assert grid == cuda_module.launch_grid(count, samples)
        state = self.view(control, (8,), np.uint32)
        step, steps, pushes = int(state[0]), int(state[3]), int(state[4])
        if step >= steps:
            self._report(control, cuda_module.BAD_OVERRUN)
            return
        shape = (samples, count)
        whole = self.view(rows, (steps, len(ROW_FIELDS)), np.float32)
        values, c_in = whole[step].copy(), whole[step + 1, C_IN] if step + 1 < steps else np.float32(1)
        target = self.view(x, shape, np.float32)
        ring = self.view(h, (3, *shape), np.float32) if h else None
        past = [None if ring is None else ring[(pushes - age) % 3] for age in (1, 2, 3)]
        base = self._optional(y, shape)
        given = None
        if noise:
            entries = samples if sample_stride else 1
            given = self.view(noise + 4 * step * row_stride, (entries, count), np.float32)
        finite = kernels.update(
            values,
            target,
            self.view(e, (lanes * samples, count), np.float32),
            weights=self.view(weights, (steps, lanes), np.float32)[step].copy(),
            c=self._optional(c, shape),
            y=base,
            h1=past[0],
            h2=past[1],
            h3=past[2],
            g=self._optional(g, shape),
            v=self._optional(v, shape),
            noise=given,
            seeds=self.view(seeds, (samples,), np.uint64).copy() if given is None else None,
            step=step if given is None else None,
            out=target,
            x0_out=self._optional(x0, shape),
            y_out=base,
            push_out=past[2],
        )
        if not finite:
            self._report(control, 1 + step)
        self._store_inputs(x_in, copies, c_in, target)
        self._advance_table(table, row, width, step + 1, steps)
        state[0] += 1
        state[4] += int(values[PUSH] != 0)

    def _dv_to_uint8(self, grid: Any, x: int, out: int, samples: int, channels: int, pixels: int) -> None:
        assert grid == cuda_module.launch_grid(pixels, samples)
        images = self.view(x, (samples, channels, pixels, 1), np.float32)
        self.view(out, (samples, pixels, 1, channels), np.uint8)[...] = kernels.to_uint8(np.ascontiguousarray(images))

    def _report(self, control: int, code: int) -> None:
        state = self.view(control, (8,), np.uint32)
        if state[2] == 0:
            state[2] = code
