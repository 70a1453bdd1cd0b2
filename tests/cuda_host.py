"""How do tests run the CUDA kernels without a GPU? kernels/cuda/update.cu compiled by g++, launched on host memory."""

from __future__ import annotations

import ctypes
import math
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine import kernels
from engine.kernels import cuda_module
from tests.kernel_build import build
from tests.kernel_choice import SEEDS

F32 = np.ndarray
ROW = dict(zip(kernels.ROW_FIELDS, (1.3, -0.8, -0.4, 0.6, -0.2, 0.3, 0.5, 0.7, 0.9, 1.0), strict=True))
GUIDANCE = 0.7
ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).with_name("cuda_on_host")
WRONG = {
    1: "there is no kernel of that name with that many arguments",
    2: "some threads of a block ended while others waited at a barrier",
    3: "the launch shape is outside what the kernels are compiled for",
}


def compile_command(output: Path, *extra: str) -> list[str]:
    """The compiler's line for launch.cpp, which includes the kernels' source; skips the test where there is no compiler."""
    try:
        compiler = build.find_compiler()
    except build.KernelBuildError:
        pytest.skip("no C++ compiler on this machine")
    return [
        *compiler, "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
        f"-I{ROOT / 'kernels' / 'include'}", f"-I{ROOT / 'kernels' / 'cuda'}", str(HERE / "launch.cpp"), "-o", str(output),
        *extra,
    ]  # fmt: skip


class HostKernels:
    """The kernels as a device module: launch() takes what cuLaunchKernel takes."""

    def __init__(self, folder: Path) -> None:
        path = folder / "cuda_on_host.so"
        line = compile_command(path, "-O2", "-fPIC", "-shared")
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        self._launch = ctypes.CDLL(str(path)).host_launch
        pointer = ctypes.c_void_p
        self._launch.argtypes = [ctypes.c_char_p, pointer, pointer, pointer, ctypes.c_int64, ctypes.c_uint32]
        self._launch.restype = ctypes.c_int32

    def launch(
        self, name: str, grid: tuple[int, int, int], block: int, words: list[int], order: int = 0
    ) -> None:
        """Runs one launch to its end. words: every argument, an address of host memory or an integer; order: the seed of
        the order of blocks and threads, 0 for ascending."""
        shape = np.array([*grid, block, 1, 1], np.uint32)
        values = np.array(words, np.int64)
        at = shape.ctypes.data
        status = self._launch(name.encode(), at, at + 12, values.ctypes.data, len(words), order)
        assert status == 0, f"{name} {grid} x {block}: {WRONG[status]}"


def row(**fields: float) -> F32:
    values = ROW | fields
    return np.array([values[name] for name in kernels.ROW_FIELDS], np.float32)


def floats(shape: tuple[int, ...], seed: int, offset: int = 0, dtype: type = np.float32) -> F32:
    """Normals in memory that begins `offset` elements after a multiple of 64 bytes."""
    values = np.random.default_rng(seed).standard_normal(math.prod(shape)).astype(dtype)
    memory = np.empty(values.size + offset + 64, dtype)
    begin = -memory.ctypes.data % 64 // memory.itemsize + offset
    memory[begin : begin + values.size] = values
    return memory[begin : begin + values.size].reshape(shape)


def at(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


class Run:
    """One sample batch on the "device": its arrays, control block and tables; step() launches the update once."""

    def __init__(
        self, host: HostKernels, shape: tuple[int, int], rows: F32, offset: int = 0, **given: np.ndarray | None
    ) -> None:
        self.host, self.rows = host, np.ascontiguousarray(rows.reshape(-1, 10))
        self.samples, self.count = shape
        offsets = iter((offset + i) % 4 if offset else 0 for i in range(9))
        self.x, self.eps, self.eps_uncond, self.cond, self.x0 = (floats(shape, i, next(offsets)) for i in range(5))
        self.x_copy = floats(shape, 6, next(offsets))
        self.seeds: np.ndarray | None = np.resize(SEEDS, self.samples)
        self.noise: np.ndarray | None = None
        self.table: np.ndarray | None = None
        self.table_row: np.ndarray | None = None
        self.strides = (0, 0)
        for name, value in given.items():
            setattr(self, name, value)
        self.control = np.zeros(8, np.uint32)
        self.upload()

    def upload(self, guidance: float = GUIDANCE, start: tuple[float, float, float] = (1, 0, 0)) -> None:
        packed = struct.pack(cuda_module.CONTROL_FORMAT, 0, 0, 0, len(self.rows), guidance, *start)
        self.control[:] = np.frombuffer(packed, np.uint32)

    def step(self, grid: tuple[int, int, int] | None = None, block: int = cuda_module.BLOCK, order: int = 0) -> None:
        name = "dv_update_f16" if self.eps.dtype == np.float16 else "dv_update_f32"
        width = 0 if self.table is None else self.table.shape[1]
        words = [
            at(self.control), at(self.rows), at(self.seeds), at(self.noise), *self.strides, at(self.eps),
            at(self.eps_uncond), at(self.cond), at(self.x), at(self.x_copy), at(self.x0), at(self.table), at(self.table_row),
            width, self.samples, self.count,
        ]  # fmt: skip
        assert len(words) == cuda_module.KERNELS[name]
        self.host.launch(name, grid or cuda_module.launch_grid(self.count, self.samples), block, words, order)

    def expected(self, step: int = 0, guidance: float = GUIDANCE) -> tuple[F32, F32]:
        """x' and x0 of the CPU kernel from the arrays as they are now."""
        out, x0 = np.empty_like(self.x), np.empty_like(self.x)
        noise = self.noise
        if noise is not None:
            noise = noise[step]
        seeds = self.seeds if noise is None else None
        number = None if noise is not None or seeds is None else step
        eps, eps_uncond = (None if e is None else e.astype(np.float32) for e in (self.eps, self.eps_uncond))
        kernels.update(
            self.rows[step], self.x, eps, eps_uncond=eps_uncond, guidance=guidance, cond=self.cond, x0_prev=self.x0,
            noise=noise, seeds=seeds, step=number, out=out, x0_out=x0,
        )  # fmt: skip
        return out, x0

    @property
    def bad(self) -> int:
        return int(self.control[2])
