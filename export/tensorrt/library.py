"""The TensorRT that is installed, and whether this project can drive it. One API family under two names.

`tensorrt_rtx` (TensorRT for RTX) builds without a GPU and for several at once. `tensorrt` (TensorRT proper, 10 and 11) times
kernels on the GPU that the plan is for. Nothing of either is imported before it is asked for.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
from dataclasses import dataclass
from typing import Any

from engine.commands import install_extra
from engine.errors import ArgumentError, BackendError

OLDEST = {"tensorrt_rtx": (1, 0), "tensorrt": (10, 1)}  # 10.1 is the first whose parser says what it does not support
NAMES = {"tensorrt_rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}
PACKAGES = {"tensorrt_rtx": "tensorrt-rtx-cu13", "tensorrt": "tensorrt"}
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # of the driver API's CUdevice_attribute
INSTALL = {
    "tensorrt_rtx": f"install it with: {install_extra('tensorrt-rtx')}",
    "tensorrt": (
        "install it on the machine whose GPU the plans are for, with: pip install tensorrt (NVIDIA's index holds the "
        "wheels); --backends tensorrt_rtx builds plans without a GPU"
    ),
}


@dataclass(frozen=True)
class Library:
    """A TensorRT library that can be driven: the backend's name, the imported module, its version."""

    backend: str
    module: Any
    version: str

    @property
    def rtx(self) -> bool:
        """Whether it is TensorRT for RTX."""
        return self.backend == "tensorrt_rtx"

    def __str__(self) -> str:
        return f"{NAMES[self.backend]} {self.version}"

    @property
    def made_with(self) -> dict[str, str]:
        """What the manifest records; a plan is valid for exactly this version."""
        return {self.backend: self.version}

    def member(self, path: str, needed_for: str) -> Any:
        """`module.A.B` by the text "A.B"; BackendError when this version has no such name."""
        found = self.module
        for name in path.split("."):
            if not hasattr(found, name):
                raise BackendError(
                    f"{self}: found no {path}, expected it for {needed_for}; upgrade it, or leave that option out"
                )
            found = getattr(found, name)
        return found


def open_library(backend: str) -> Library:
    """Import the library of a backend; BackendError says how to install it, or which version is too old."""
    try:
        module = importlib.import_module(backend)
    except (ImportError, OSError, RuntimeError) as error:  # the package loads shared libraries, and may find them missing
        absent = isinstance(error, ModuleNotFoundError) and error.name == backend
        found = "that it is not installed" if absent else f"that it cannot be imported ({error})"
        raise BackendError(f"backend {backend}: found {found}, expected {NAMES[backend]}; {INSTALL[backend]}") from error
    version = str(getattr(module, "__version__", ""))
    oldest = OLDEST[backend]
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < oldest:
        raise BackendError(
            f"backend {backend}: found {NAMES[backend]} {version or 'without a version'}, expected "
            f"{oldest[0]}.{oldest[1]} or later; upgrade it with: pip install --upgrade {PACKAGES[backend]}"
        )
    return Library(backend, module, version)


def device_target() -> str:
    """The compute capability of the GPU that TensorRT proper builds on, as `sm86`; BackendError where there is none.

    Asked of the driver itself, which is there wherever TensorRT can build.
    """
    file = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(file)
    except OSError as error:
        raise _no_gpu(f"no driver ({error})") from error
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        ("cuInit", (ctypes.c_uint(0),)),
        ("cuDeviceGet", (ctypes.byref(device), ctypes.c_int(0))),
        ("cuDeviceGetAttribute", (ctypes.byref(major), ctypes.c_int(COMPUTE_CAPABILITY_MAJOR), device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), ctypes.c_int(COMPUTE_CAPABILITY_MINOR), device)),
    )
    for name, arguments in calls:
        if status := getattr(driver, name)(*arguments):
            raise _no_gpu(f"that {name} answers {status}")
    return f"sm{major.value}{minor.value}"


def _no_gpu(found: str) -> BackendError:
    return BackendError(
        f"backend tensorrt: found {found}, expected the GPU that the plans are for; build on its machine, or without a GPU "
        "with --backends tensorrt_rtx"
    )


def settle_targets(library: Library, asked: tuple[str, ...], hardware: str) -> tuple[str, ...]:
    """The targets that a plan of this build is for; "sm80+" means that one and every later.

    ArgumentError when TensorRT proper is asked for another GPU than the one that it would build on.
    """
    if library.rtx:
        return asked
    device = device_target()
    if asked not in ((), (device,)):
        raise ArgumentError(
            f"--targets: found {asked[0]}, expected {device}, the GPU of this machine, on which TensorRT builds; leave "
            "--targets out, or build on the other machine"
        )
    if hardware != "ampere_plus":
        return (device,)
    if int(device.removeprefix("sm")) < 80:
        raise ArgumentError(
            f"--trt-hardware ampere_plus: found {device} in this machine, expected sm80 or later to build on; leave the "
            "option out"
        )
    return ("sm80+",)
