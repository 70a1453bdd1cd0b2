"""What do the CUDA kernels do to memory when a mock launches them? By kernels/cuda/README.md, in the CPU kernels' bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine import kernels
from engine.kernels import ROW_FIELDS, cuda_module


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

    def _dv_normal(
        self, grid: Any, seeds: int, stream: int, first: int, steps: int, samples: int, count: int, out: int
    ) -> None:
        assert grid == cuda_module.launch_grid(count, samples, steps)
        values = self.view(out, (steps, samples, count), np.float32)
        for step in range(steps):
            kernels.normal(self.view(seeds, (samples,), np.uint64).copy(), stream, first + step, count, values[step])

    def _dv_cond(self, grid: Any, control: int, image: int, cond: int, total: int) -> None:
        assert grid == cuda_module.launch_grid(total)
        values = self.view(image, (total,), np.float32).copy()
        if not np.isfinite(values).all():
            self._report(control, cuda_module.BAD_IMAGE)
        self.view(cond, (total,), np.float32)[:] = np.float32(2) * values - np.float32(1)

    def _dv_start(
        self, grid: Any, control: int, seeds: int, x_T: int, x_T_stride: int, image: int, cond: int, x: int, x_copy: int,
        table: int, row: int, width: int, samples: int, count: int,
    ) -> None:  # fmt: skip
        assert grid == cuda_module.launch_grid(count, samples)
        shape = (samples, count)
        if x_T:
            noise = self.view(x_T, shape if x_T_stride else (1, count), np.float32)
        else:
            noise = kernels.normal(self.view(seeds, (samples,), np.uint64).copy(), kernels.STREAM_X_T, 0, count)
        k_noise, k_image, k_cond = self.view(control, (8,), np.float32)[5:8]
        value = np.broadcast_to(noise, shape) * k_noise
        for k, source in ((k_image, image), (k_cond, cond)):
            if k != 0 and source:
                value = value + k * self.view(source, shape, np.float32)
        for target in (x, x_copy):
            if target:
                self.view(target, shape, np.float32)[:] = value
        steps = int(self.view(control, (8,), np.uint32)[3])
        self._advance_table(table, row, width, 0, steps)

    def _dv_update_f32(
        self, grid: Any, control: int, rows: int, seeds: int, noise: int, step_stride: int, sample_stride: int, eps: int,
        eps_uncond: int, cond: int, x: int, x_copy: int, x0: int, table: int, row: int, width: int, samples: int, count: int,
    ) -> None:  # fmt: skip
        assert grid == cuda_module.launch_grid(count, samples)
        state = self.view(control, (8,), np.uint32)
        step, steps = int(state[0]), int(state[3])
        if step >= steps:
            self._report(control, cuda_module.BAD_OVERRUN)
            return
        shape = (samples, count)
        values = self.view(rows, (steps, len(ROW_FIELDS)), np.float32)[step].copy()
        guidance = float(self.view(control, (8,), np.float32)[4])
        target = self.view(x, shape, np.float32)
        kept = self._optional(x0, shape)
        given = None
        if noise:
            lanes = samples if sample_stride else 1
            given = self.view(noise + 4 * step * step_stride, (lanes, count), np.float32)
        finite = kernels.update(
            values,
            target,
            self.view(eps, shape, np.float32),
            eps_uncond=self._optional(eps_uncond, shape),
            guidance=guidance,
            cond=self._optional(cond, shape),
            x0_prev=kept if values[ROW_FIELDS.index("k_prev")] != 0 else None,
            noise=given,
            seeds=self.view(seeds, (samples,), np.uint64).copy() if given is None else None,
            step=step if given is None else None,
            out=target,
            x0_out=kept,
        )
        if not finite:
            self._report(control, 1 + step)
        if x_copy:
            self.view(x_copy, shape, np.float32)[:] = target
        self._advance_table(table, row, width, step + 1, steps)
        state[0] += 1

    def _dv_to_uint8(self, grid: Any, x: int, out: int, samples: int, channels: int, pixels: int) -> None:
        assert grid == cuda_module.launch_grid(pixels, samples)
        images = self.view(x, (samples, channels, pixels, 1), np.float32)
        self.view(out, (samples, pixels, 1, channels), np.uint8)[...] = kernels.to_uint8(np.ascontiguousarray(images))

    def _report(self, control: int, code: int) -> None:
        state = self.view(control, (8,), np.uint32)
        if state[2] == 0:
            state[2] = code
