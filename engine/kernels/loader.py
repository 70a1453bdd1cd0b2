"""The implementation of the kernels, chosen once, never silently: the library beside this file, or numpy.

DIFFUSEVAE_KERNELS unset or "compiled" demands the library; "numpy" takes the slower twin with the same bits.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import platform
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.commands import reinstall
from engine.kernels import fallback
from engine.kernels.errors import KernelLoadError
from engine.kernels.operands import F32, U64, Operands, address
from engine.kernels.operands import address_or_none as _at

VARIABLE = "DIFFUSEVAE_KERNELS"
CHOICES = ("compiled", "numpy")
LIBRARY = Path(__file__).with_name("_kernels.so")
ABI_VERSION = 4  # DV_ABI_VERSION of kernels/include/diffusevae/kernels.h

_ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}

U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]

_CURE = (
    f"Run `{reinstall()}`: a checkout or an sdist is compiled by a C++17 compiler, for instance g++ 12 or newer (`apt "
    f"install g++`), and a wheel for platform `any` has no kernels. Or set {VARIABLE}=numpy to run the slower numpy kernels."
)


class Kernels(Protocol):
    """The kernels; arguments are checked by the caller (kernels/__init__.py)."""

    def update(self, o: Operands) -> bool: ...

    def normal(self, seeds: U64, stream: int, step: int, count: int, out: F32) -> None: ...

    def mixture(self, seeds: U64, thresholds: U64, means: F32, factors: F32, units: F32, out: F32) -> None: ...

    def to_uint8(self, x: F32, out: U8) -> None: ...

    def enlarge(self, x: F32, out: F32) -> None: ...

    def philox4x32(self, counter: U32, key: U32) -> U32: ...

    def describe(self) -> dict[str, str]: ...


class _UpdateArgs(ctypes.Structure):
    """dv_update_args of kernels/include/diffusevae/kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "row", "x", "e", "weights", "c", "y", "h1", "h2", "h3", "g", "v", "noise", "seeds", "out", "x0_out",
            "y_out", "push_out")),
        *((name, ctypes.c_int64) for name in ("samples", "count", "noise_stride")),
        ("step", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("lanes", "threads")),
    ]


class CompiledKernels:
    """The compiled library, called through ctypes (which releases the interpreter lock meanwhile)."""

    def __init__(self, path: Path = LIBRARY) -> None:
        self._path = path
        self._library = open_library(path)
        size, unsigned, pointer = ctypes.c_int64, ctypes.c_uint32, ctypes.c_void_p
        signatures: dict[str, tuple[list[Any], Any]] = {
            "dv_isa": ([], ctypes.c_char_p),
            "dv_update": ([ctypes.POINTER(_UpdateArgs)], ctypes.c_int32),
            "dv_normal": ([pointer, size, unsigned, unsigned, size, pointer], None),
            "dv_mixture": ([pointer, size, pointer, size, pointer, pointer, size, pointer, pointer], None),
            "dv_to_uint8": ([pointer, size, size, size, pointer], None),
            "dv_enlarge": ([pointer, size, size, size, size, size, pointer], None),
            "dv_philox4x32": ([pointer, pointer, pointer], None),
        }
        declare(self._library, signatures, path)

    def update(self, o: Operands) -> bool:
        samples = o.x.shape[0]
        count = o.x.size // samples if samples else 0
        shared = o.noise is not None and o.noise.shape[0] != samples
        arguments = _UpdateArgs(
            _at(o.row), _at(o.x), _at(o.e), _at(o.weights), _at(o.c), _at(o.y), _at(o.h1), _at(o.h2), _at(o.h3), _at(o.g),
            _at(o.v), _at(o.noise), _at(o.seeds), _at(o.out), _at(o.x0_out), _at(o.y_out), _at(o.push_out), samples, count,
            0 if shared else count, o.step, o.weights.size, o.threads,
        )  # fmt: skip
        return bool(self._library.dv_update(ctypes.byref(arguments)))

    def normal(self, seeds: U64, stream: int, step: int, count: int, out: F32) -> None:
        self._library.dv_normal(address(seeds), seeds.size, stream, step, count, address(out))

    def mixture(self, seeds: U64, thresholds: U64, means: F32, factors: F32, units: F32, out: F32) -> None:
        components, width = means.shape
        self._library.dv_mixture(
            address(seeds), seeds.size, address(thresholds), components, address(means), address(factors), width,
            address(units), address(out),
        )  # fmt: skip

    def to_uint8(self, x: F32, out: U8) -> None:
        samples, channels, height, width = x.shape
        self._library.dv_to_uint8(address(x), samples, channels, height * width, address(out))

    def enlarge(self, x: F32, out: F32) -> None:
        planes = x.shape[0] * x.shape[1]
        self._library.dv_enlarge(address(x), planes, *x.shape[2:], *out.shape[2:], address(out))

    def philox4x32(self, counter: U32, key: U32) -> U32:
        out = np.empty(4, np.uint32)
        self._library.dv_philox4x32(address(counter), address(key), address(out))
        return out

    def describe(self) -> dict[str, str]:
        return {"name": "compiled", "isa": self._library.dv_isa().decode(), "path": str(self._path)}


def open_library(path: Path) -> ctypes.CDLL:
    """The library at `path`, of this version; KernelLoadError otherwise."""
    if not path.exists():
        raise KernelLoadError(f"The compiled kernels are missing: {path} does not exist. {_CURE}")
    try:
        _check_elf(path)
        library = ctypes.CDLL(str(path))
        version = int(library.dv_abi_version())
    except (OSError, AttributeError) as error:
        raise KernelLoadError(f"{path} is not a kernel library that this machine can load: {error}. {_CURE}") from error
    if version != ABI_VERSION:
        raise KernelLoadError(
            f"{path} was built from other sources: it has interface version {version}, expected {ABI_VERSION}. {_CURE}"
        )
    return library


def declare(library: ctypes.CDLL, signatures: dict[str, tuple[list[Any], Any]], path: Path) -> None:
    """Give functions their types; KernelLoadError for one that the library lacks."""
    try:
        for name, (arguments, result) in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
    except AttributeError as error:
        raise KernelLoadError(f"{path} was built from other sources ({error}). {_CURE}") from error


def _check_elf(path: Path) -> None:
    """OSError for what the system's loader answers badly: it dies of a file that is cut short (SIGBUS), and says of another
    machine's library that there is none."""
    with open(path, "rb") as file:
        size, header = os.fstat(file.fileno()).st_size, file.read(64)
    if header[:4] != b"\x7fELF" or len(header) < 64 or header[4:6] != b"\2\1":
        return  # of another system's format, or no library at all: the loader says so
    machine, table = int.from_bytes(header[18:20], "little"), int.from_bytes(header[40:48], "little")
    end = table + int.from_bytes(header[58:60], "little") * int.from_bytes(header[60:62], "little")
    if size < end:
        raise OSError(f"it is cut short: {size} bytes of {end}")
    wanted = _ELF_MACHINES.get(platform.machine())
    if wanted is not None and machine != wanted:
        named = next((name for name, number in _ELF_MACHINES.items() if number == machine), f"ELF machine {machine}")
        raise OSError(f"it was compiled for {named}, and this machine is {platform.machine()}")


def load() -> Kernels:
    """The implementation that the environment asks for.

    Raises KernelLoadError when the library is missing or unfit, or when the variable holds an unknown value.
    """
    wanted = os.environ.get(VARIABLE) or "compiled"
    if wanted == "numpy":
        return fallback.NumpyKernels(f"{VARIABLE}=numpy")
    if wanted == "compiled":
        return CompiledKernels()
    near = difflib.get_close_matches(wanted, CHOICES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise KernelLoadError(
        f"{VARIABLE} is {wanted!r}; expected one of {', '.join(CHOICES)}, or the variable unset for compiled.{hint}"
    )
