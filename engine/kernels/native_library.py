"""The native CPU engine from Python: the structs of kernels/include/diffusevae/native.h, and one class over its calls.

Programs arrive as ctypes arrays (engine/backends/native/program.py makes them); this file knows neither bundles nor JSON.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.commands import reinstall
from engine.kernels.errors import KernelError, KernelLoadError
from engine.kernels.loader import LIBRARY, declare, open_library

VERSION = 6  # DV_NATIVE_VERSION
MAX_SOURCES = 4
MAX_THREADS = 256
NONE = -1
ISAS = ("amx", "avx512_bf16", "avx512", "avx2")  # best first

OK, BAD_PROGRAM, BAD_CALL, NO_MEMORY, NO_THREADS, UNSUPPORTED, BUSY, FORKED, NOT_FINITE, CANCELLED, PAUSED = range(11)
SLICE_MS = 10.0  # a signal is answered after so long, and the row or tile that is being worked on
_PATIENCE = 50.0
_ERROR_SIZE = 1024
_Text = ctypes.c_char * _ERROR_SIZE
_Sources = ctypes.c_int32 * MAX_SOURCES


class Stopped(Exception):
    """`stop` ended a run between two slices; the handle serves on."""


class NativeError(KernelError):
    """A call of the native engine failed: `status` is one of the constants above, the text is the library's own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def _ints(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int32) for name in names]


def _longs(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class Port(ctypes.Structure):
    """dv_native_port."""

    _fields_ = _ints("kind", "is_output", "channels", "height", "width", "rows")


class Tensor(ctypes.Structure):
    """dv_native_tensor."""

    _fields_ = _ints("rows", "channels", "height", "width")


class PackedTensor(ctypes.Structure):
    """dv_native_blob."""

    _fields_ = [*_longs("offset", "size"), *_ints("dtype")]


class Op(ctypes.Structure):
    """dv_native_op."""

    _fields_ = [
        *_ints("kind"), ("sources", _Sources), *_ints("output", "output_port"),
        *_ints("kernel", "stride", "pad_top", "pad_left", "upsample", "factor", "offset"),
        *_ints("norm_groups", "norm_layer"), ("norm_epsilon", ctypes.c_float), *_ints("norm_weight", "norm_bias"),
        *_ints("scale_row", "modulation", "activation"),
        *_ints("weights", "bias", "bias_row", "residual"), ("residual_scale", ctypes.c_float),
        ("skip_sources", _Sources), *_ints("skip_weights"), *_ints("output_activation"),
        *_ints("int8", "zero_point"), ("inverse_scale", ctypes.c_float), *_ints("multiplier"),
        *_ints("heads", "keys"), ("scale", ctypes.c_float), *_ints("labels", "places"),
    ]  # fmt: skip


class Program(ctypes.Structure):
    """dv_native_program."""

    _fields_ = [
        *_ints("version", "ports_count", "tensors_count", "ops_count", "blobs_count"),
        *_pointers("ports", "tensors", "ops", "blobs", "weights"),
        *_longs("weights_size"),
    ]


class Slice(ctypes.Structure):
    """dv_native_slice."""

    _fields_ = [("ms", ctypes.c_double), ("left_ms", ctypes.c_double), *_longs("rows", "samples")]


class Call(ctypes.Structure):
    """dv_native_call."""

    _fields_ = [
        *_pointers("ports"), *_ints("ports_count", "row_count"), *_longs("batch", "steps"), ("slice", Slice),
    ]  # fmt: skip


class Steps(ctypes.Structure):
    """dv_native_steps."""

    _fields_ = [
        *_ints("x_port", "row_port", "e_port", "v_port", "constants_count"), *_pointers("constant_ports", "constants"),
        *_ints("steps", "row_count", "lanes", "samples"),
        *_pointers("embeddings", "rows", "weights", "x", "x_in", "c", "e", "v", "x0", "y", "h", "seeds", "noise"),
        *_ints("noise_shared"), *_longs("first_step"), *_pointers("step_ms", "update_ms"),
        *_pointers("stop", "stop_user"), *_ints("failed_step"), ("slice", Slice),
    ]  # fmt: skip


class Info(ctypes.Structure):
    """dv_native_info."""

    _fields_ = [("isa", ctypes.c_char_p), *_ints("threads", "batch_tile"), *_longs("arena_bytes", "weights_bytes")]


class Timing(ctypes.Structure):
    """dv_native_timing."""

    _fields_ = [
        *((name, ctypes.c_double) for name in (
            "prepare_us", "product_us", "flop", "weight_bytes", "activation_bytes")),
        *_longs("runs"),
    ]  # fmt: skip


@dataclass(frozen=True)
class Flat:
    """A program in the structs' form, unchecked; the weights are bytes that stay where they are while a handle is open."""

    ports: ctypes.Array[Port]
    tensors: ctypes.Array[Tensor]
    ops: ctypes.Array[Op]
    blobs: ctypes.Array[PackedTensor]
    weights: NDArray[np.uint8]


class NativeLibrary:
    """The compiled library; every method but isa and supports raises NativeError."""

    def __init__(self, path: Path = LIBRARY) -> None:
        self._library = open_library(path)
        text, size, handle = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p
        signatures: dict[str, tuple[list[Any], Any]] = {
            "dv_native_version": ([], ctypes.c_int32),
            "dv_native_isa": ([], text),
            "dv_native_supports": ([text, text, size], ctypes.c_int32),
            "dv_native_open": (
                [ctypes.POINTER(Program), text, ctypes.c_int32, ctypes.POINTER(handle), text, size], ctypes.c_int32),
            "dv_native_clone": ([handle, ctypes.c_int32, ctypes.POINTER(handle), text, size], ctypes.c_int32),
            "dv_native_close": ([handle], None),
            "dv_native_run": ([handle, ctypes.POINTER(Call), text, size], ctypes.c_int32),
            "dv_native_run_steps": ([handle, ctypes.POINTER(Steps), text, size], ctypes.c_int32),
            "dv_native_describe": ([handle, ctypes.POINTER(Info)], None),
            "dv_native_profile": ([handle, ctypes.c_int32], ctypes.c_int32),
            "dv_native_timings": ([handle, ctypes.POINTER(Timing), ctypes.c_int32], ctypes.c_int32),
            "dv_native_ceiling": (
                [text, text, ctypes.c_int32, ctypes.c_double, ctypes.POINTER(ctypes.c_double), text, size],
                ctypes.c_int32),
        }  # fmt: skip
        declare(self._library, signatures, path)
        version = int(self._library.dv_native_version())
        if version != VERSION:
            raise KernelLoadError(
                f"{path} has version {version} of the native engine, expected {VERSION}. Run `{reinstall()}`."
            )

    def isa(self) -> str:
        """The best instruction set of this machine, "" where none of ISAS runs."""
        return str(self._library.dv_native_isa().decode())

    def supports(self, isa: str) -> tuple[bool, str]:
        """(whether this machine runs `isa`, what is missing where not)."""
        why = _Text()
        there = bool(self._library.dv_native_supports(isa.encode(), why, _ERROR_SIZE))
        return there, why.value.decode(errors="replace")

    def open(self, flat: Flat, isa: str | None, threads: int) -> int:
        """A handle over a program, which the library checks: BAD_PROGRAM names the field of the operation."""
        program = Program(
            VERSION, len(flat.ports), len(flat.tensors), len(flat.ops), len(flat.blobs), ctypes.addressof(flat.ports),
            ctypes.addressof(flat.tensors), ctypes.addressof(flat.ops), ctypes.addressof(flat.blobs),
            flat.weights.ctypes.data, flat.weights.nbytes,
        )  # fmt: skip
        handle = ctypes.c_void_p()
        self._call(
            "dv_native_open", ctypes.byref(program), isa.encode() if isa else None, threads, ctypes.byref(handle)
        )
        return int(handle.value or 0)

    def clone(self, handle: int, threads: int) -> int:
        """Another handle over the same layout and weights; `handle` may be of the process that this one was forked from."""
        twin = ctypes.c_void_p()
        self._call("dv_native_clone", handle, threads, ctypes.byref(twin))
        return int(twin.value or 0)

    def close(self, handle: int) -> None:
        """End the threads of a handle of this process and give its memory back."""
        self._library.dv_native_close(handle)

    def run(self, handle: int, addresses: Sequence[int], *, batch: int, steps: int, row_count: int) -> None:
        """Run a program on one array a port."""
        ports = (ctypes.c_void_p * len(addresses))(*addresses)
        call = Call(ctypes.addressof(ports), len(addresses), row_count, batch, steps)
        self._in_slices("dv_native_run", handle, call)

    def run_steps(self, handle: int, steps: Steps, stop: Callable[[], object] | None = None) -> int:
        """Run a whole chain; the first row whose e was not finite, or NONE. stop: as for `_in_slices`."""
        try:
            self._in_slices("dv_native_run_steps", handle, steps, stop)
        except NativeError as error:
            if error.status != NOT_FINITE:
                raise
            return int(steps.failed_step)
        return NONE

    def describe(self, handle: int) -> Info:
        """What a handle runs on and how much memory it takes."""
        info = Info()
        self._library.dv_native_describe(handle, ctypes.byref(info))
        return info

    def profile(self, handle: int, on: bool) -> None:
        """Clear and start the clocks of every operation, or stop them."""
        self._check(self._library.dv_native_profile(handle, int(on)), b"the clocks could not be switched")

    def timings(self, handle: int, count: int) -> list[Timing]:
        """The clocks of the first `count` operations."""
        found = (Timing * max(1, count))()
        there = int(self._library.dv_native_timings(handle, found, count))
        return list(found)[: min(there, count)]

    def ceiling(self, what: str, isa: str | None, threads: int, seconds: float) -> float:
        """What the machine could do, in operations or bytes a second; see native.h for `what`."""
        result = ctypes.c_double()
        self._call(
            "dv_native_ceiling", what.encode(), isa.encode() if isa else None, threads, seconds, ctypes.byref(result)
        )
        return float(result.value)

    def _in_slices(self, name: str, handle: int, call: Call | Steps, stop: Callable[[], object] | None = None) -> None:
        """Run a call to its end. In the main thread it comes back here between slices, where Python runs the handlers of
        signals that have arrived: what one raises (KeyboardInterrupt, say) ends the run, and the handle serves on. In any
        thread `stop` is asked there, where there is one: Stopped where its answer is true."""
        function, error = getattr(self._library, name), _Text()
        if stop is not None or threading.get_ident() == threading.main_thread().ident:
            call.slice.ms = SLICE_MS
        while (status := function(handle, ctypes.byref(call), error, _ERROR_SIZE)) == PAUSED:
            if stop is not None and stop():
                raise Stopped
            # Where other threads hold the interpreter, coming back takes milliseconds: then it is done the more rarely.
            call.slice.ms = max(SLICE_MS, _PATIENCE * (1e3 * time.monotonic() - call.slice.left_ms))
        if status != OK:
            self._check(status, error.value)

    def _call(self, name: str, *arguments: Any) -> None:
        error = _Text()
        self._check(getattr(self._library, name)(*arguments, error, _ERROR_SIZE), error.value)

    def _check(self, status: int, text: bytes) -> None:
        if status != OK:
            raise NativeError(status, text.decode(errors="replace") or f"status {status}")


@functools.cache
def native_library() -> NativeLibrary:
    """The process's one library; KernelLoadError when it is missing, damaged or of another version."""
    return NativeLibrary()
