"""Launches of our own CUDA kernels, with arguments as kernels/cuda/README.md lists them."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from engine.cleanup import undo
from engine.device.context import Device, release_all
from engine.errors import BackendError
from engine.kernels import KernelError, cuda_module
from engine.solver.table import Start

CONTROL_WORDS = struct.calcsize(cuda_module.CONTROL_FORMAT) // 4
BAD_WORD = 2  # which 32-bit word of the control block holds the first finding of the NaN guard


class GpuKernels:
    """The module of our kernels, loaded into one device's context."""

    def __init__(self, device: Device) -> None:
        self.device = device
        try:
            code = cuda_module.code(device.sm.replace("sm", "sm_")).code
        except KernelError as error:
            raise BackendError(f"CUDA kernels for {device.sm}: {error}") from error
        self._module = int(device("cuModuleLoadData", code, purpose="loading the CUDA kernels"))
        with undo(self.close):
            self._functions = {
                name: int(device("cuModuleGetFunction", self._module, name.encode())) for name in cuda_module.KERNELS
            }

    def launch(self, name: str, stream: int, grid: tuple[int, int, int], *words: int) -> None:
        """One launch; every argument of every kernel is a 64-bit word."""
        values = np.array(words, np.int64)
        # The driver reads the values through these addresses before the call returns.
        addresses = values.ctypes.data + 8 * np.arange(len(words), dtype=np.uint64)
        self.device(
            "cuLaunchKernel", self._functions[name], *grid, cuda_module.BLOCK, 1, 1, 0, stream, addresses.ctypes.data, 0,
            purpose=f"the launch of {name}",
        )  # fmt: skip

    def close(self) -> None:
        if self._module:
            module, self._module = self._module, 0
            release_all(self.device, [lambda: self.device("cuModuleUnload", module)])


def control_block(rows: int, start: Start) -> npt.NDArray[np.uint32]:
    """The words that every run begins with."""
    scales = start.k_noise, start.k_start, start.k_centre
    return np.frombuffer(struct.pack(cuda_module.CONTROL_FORMAT, 0, 0, 0, rows, 0, *scales), np.uint32)
