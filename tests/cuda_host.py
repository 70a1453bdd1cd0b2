"""The CUDA kernels without a GPU: kernels/cuda/update.cu compiled by g++, launched on host memory."""

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
PLAIN = {
    "p_x": 1.3, "p_e": -0.8, "p_c": -0.4, "k_x0": 0.6, "k_x": 0.3, "k_e": 0.5, "k_c": 0.7, "k_n": 0.9,
    "clip": 1.0, "c_in": 1.0,
}  # fmt: skip
FULL = {
    "p_y": 0.2, "p_h1": -0.1, "p_h2": 0.15, "p_h3": -0.25, "k_y": 0.35, "k_h1": -0.45, "k_h2": 0.55, "k_h3": -0.65,
    "k_g": 0.05, "q_x0": 0.11, "q_x": 0.12, "q_e": -0.13, "q_c": 0.14, "q_n": 0.16, "q_y": 0.17, "q_h1": -0.18, "q_h2": 0.19,
    "q_h3": 0.21, "q_g": -0.22, "s_n": 0.3,
}  # fmt: skip
FULL_FIELDS = [kernels.ROW_FIELDS.index(name) for name in FULL]
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
    """A plain row: every operand that one can have, no push."""
    values = PLAIN | fields
    return np.array([values.get(name, 0.0) for name in kernels.ROW_FIELDS], np.float32)


def full_row(**fields: float) -> F32:
    """A row with every coefficient there is."""
    return row(**(FULL | fields))


def floats(shape: tuple[int, ...], seed: int, offset: int = 0) -> F32:
    """Normals in memory that begins `offset` elements after a multiple of 64 bytes."""
    values = np.random.default_rng(seed).standard_normal(math.prod(shape)).astype(np.float32)
    memory = np.empty(values.size + offset + 64, np.float32)
    begin = -memory.ctypes.data % 64 // memory.itemsize + offset
    memory[begin : begin + values.size] = values
    return memory[begin : begin + values.size].reshape(shape)


def at(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


class Run:
    """One batch on the "device": its arrays, control block and tables; step() launches the update once.

    e is [lanes, samples, count]; h is the ring of the history, [3, samples, count].
    """

    def __init__(
        self, host: HostKernels, shape: tuple[int, int], rows: F32, offset: int = 0, lanes: int = 2,
        **given: np.ndarray | None,
    ) -> None:  # fmt: skip
        self.host, self.rows = host, np.ascontiguousarray(rows.reshape(-1, len(kernels.ROW_FIELDS)))
        self.samples, self.count = shape
        self.lanes = lanes
        offsets = iter((offset + i) % 4 if offset else 0 for i in range(10))
        self.x, self.c, self.x0, self.y, self.g = (floats(shape, i, next(offsets)) for i in range(5))
        self.e, self.x_in = (floats((lanes, *shape), seed, next(offsets)) for seed in (5, 6))
        self.h = floats((3, *shape), 7, next(offsets))
        self.v = floats(shape, 8, next(offsets))
        self.weights = np.tile(np.array([1.7, -0.7, 0.3][:lanes] if lanes > 1 else [1.0], np.float32), (len(self.rows), 1))
        self.seeds: np.ndarray | None = np.resize(SEEDS, self.samples)
        self.noise: np.ndarray | None = None
        self.table: np.ndarray | None = None
        self.table_row: np.ndarray | None = None
        self.strides = (0, 0)
        self.full: bool | None = None  # which kernel; None for the one that the table needs
        for name, value in given.items():
            setattr(self, name, value)
        self.control = np.zeros(8, np.uint32)
        self.upload()

    def upload(self, start: tuple[float, float, float] = (1, 0, 0), pushes: int = 0) -> None:
        packed = struct.pack(cuda_module.CONTROL_FORMAT, 0, 0, 0, len(self.rows), pushes, *start)
        self.control[:] = np.frombuffer(packed, np.uint32)

    def step(self, grid: tuple[int, int, int] | None = None, block: int = cuda_module.BLOCK, order: int = 0) -> None:
        full = bool(self.rows[:, FULL_FIELDS].any()) if self.full is None else self.full
        name = "dv_update_full" if full else "dv_update_plain"
        width = 0 if self.table is None else self.table.shape[1]
        words = [
            at(self.control), at(self.rows), at(self.weights), self.lanes, at(self.seeds), at(self.noise), *self.strides,
            at(self.e), at(self.c), at(self.x), at(self.x_in), 0 if self.x_in is None else self.lanes, at(self.x0),
            at(self.h), at(self.table), at(self.table_row), width, self.samples, self.count,
        ]  # fmt: skip
        words += [at(self.y), at(self.g), at(self.v)] if full else []
        assert len(words) == cuda_module.KERNELS[name]
        self.host.launch(name, grid or cuda_module.launch_grid(self.count, self.samples), block, words, order)

    def history(self, age: int) -> np.ndarray:
        """h1, h2 or h3 after the pushes so far."""
        return self.h[(int(self.control[4]) - age) % 3]

    def expected(self, step: int = 0) -> dict[str, F32]:
        """x, x_in, x0, y and h after this row, by the CPU kernel from the arrays as they are now."""
        row, pushes = self.rows[step], int(self.control[4])
        want = {name: getattr(self, name).copy() for name in ("x", "x0", "y", "h")}
        noise = None if self.noise is None else self.noise[step]
        seeds = self.seeds if noise is None else None
        pushed = want["h"][pushes % 3]
        kernels.update(
            row, self.x, self.e.reshape(self.lanes * self.samples, self.count), weights=self.weights[step], c=self.c,
            y=self.y, h1=self.history(1), h2=self.history(2), h3=self.history(3), g=self.g, v=self.v, noise=noise,
            seeds=seeds, step=step if seeds is not None else None, out=want["x"], x0_out=want["x0"], y_out=want["y"],
            push_out=pushed if row[kernels.ROW_FIELDS.index("push")] else None,
        )  # fmt: skip
        if self.x_in is None:
            return want
        last = step + 1 == len(self.rows)
        c_in = np.float32(1) if last else self.rows[step + 1][kernels.ROW_FIELDS.index("c_in")]
        return want | {"x_in": np.broadcast_to(c_in * want["x"], self.x_in.shape)}

    @property
    def bad(self) -> int:
        return int(self.control[2])
