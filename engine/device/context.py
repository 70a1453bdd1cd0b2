"""The GPU and its context: a device shared with its other users in the process: torch, CuPy, pycuda.

    open_device()       the context that is current in this thread (pycuda's, torch's), else device 0's primary one
    open_device(1)      device 1's primary context
    open_device(ctx)    a caller's own: an object with `.handle` (pycuda.driver.Context), which must outlive its users
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine.cleanup import run_all, undo
from engine.device.driver import Driver, load_driver
from engine.errors import ArgumentError, DeviceError

NAME_BYTES = 256


class Device:
    """One GPU in one context; counts its users, and gives a primary context back with the last of them.

    Attributes: ordinal, name, capability (major, minor), driver.
    """

    def __init__(self, driver: Driver, ordinal: int, context: int, *, primary: bool) -> None:
        self.driver, self.ordinal, self.context = driver, ordinal, context
        self._primary, self._users, self._lock = primary, 1, threading.Lock()
        self._handle = device = driver("cuDeviceGet", ordinal)
        self.name = bytes(driver("cuDeviceGetName", NAME_BYTES, device)).split(b"\0")[0].decode(errors="replace")
        kinds = driver.api.CUdevice_attribute
        self.capability = (
            int(driver("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)),
            int(driver("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)),
        )

    @property
    def sm(self) -> str:
        """The compute capability as a target's name: sm86."""
        return "sm{}{}".format(*self.capability)

    def __repr__(self) -> str:
        return f"<device {self.ordinal}: {self.name}, {self.sm}>"

    def __call__(self, name: str, *arguments: Any, purpose: str = "") -> Any:
        """A driver call; DeviceError when it fails, or when an earlier failure has taken the context with it."""
        if self.driver.lost is not None:
            raise DeviceError(
                f"device {self.ordinal} ({self.name}): found that it is lost since {self.driver.lost}, expected a working "
                f"GPU; start the process again"
            )
        return self.driver(name, *arguments, purpose=purpose)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context the calling thread's for the `with` block, and restore what was there."""
        self("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            self.driver("cuCtxPopCurrent")

    def share(self) -> Device:
        """The same device for one more user, who calls `release`."""
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        """One user less."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last and self._primary and not self.driver.gone:
            self.driver("cuDevicePrimaryCtxRelease", self._handle)


def open_device(choice: object = None) -> Device:
    """The device that `choice` means (see the top of this file); ArgumentError or DeviceError when there is none."""
    if isinstance(choice, Device):
        return choice.share()
    if choice is not None and not hasattr(choice, "handle") and (isinstance(choice, bool) or not isinstance(choice, int)):
        raise ArgumentError(
            f"device: found {choice!r}, expected None, a device's number, or a CUDA context with a .handle; "
            f"nvidia-smi -L lists the numbers"
        )
    driver = load_driver()
    count = device_count(driver)
    if isinstance(choice, int):
        return _primary(driver, choice, count)
    if choice is not None:
        return _adopted(driver, int(choice.handle))
    context = int(driver("cuCtxGetCurrent"))
    return _adopted(driver, context) if context else _primary(driver, 0, count)


def device_count(driver: Driver) -> int:
    """How many GPUs the process may use; DeviceError when none."""
    count = int(driver("cuDeviceGetCount"))
    if count == 0:
        raise DeviceError(
            "CUDA: found no device, expected an NVIDIA GPU; check with nvidia-smi (CUDA_VISIBLE_DEVICES may hide it), or "
            "choose a CPU backend, for example backend='openvino'"
        )
    return count


def _primary(driver: Driver, ordinal: int, count: int) -> Device:
    if not 0 <= ordinal < count:
        raise DeviceError(
            f"device: found number {ordinal}, expected {f'0..{count - 1}' if count > 1 else '0, the only one'}; "
            f"nvidia-smi -L lists them, CUDA_VISIBLE_DEVICES hides some"
        )
    device = driver("cuDeviceGet", ordinal)
    context = int(driver("cuDevicePrimaryCtxRetain", device))
    with undo(lambda: driver("cuDevicePrimaryCtxRelease", device)):
        return Device(driver, ordinal, context, primary=True)


def _adopted(driver: Driver, context: int) -> Device:
    """A context that another library made; the primary one is retained, so that it outlives us."""
    driver("cuCtxPushCurrent", context)
    try:
        device = driver("cuCtxGetDevice")
    finally:
        driver("cuCtxPopCurrent")
    ordinal = int(device)
    _, active = driver("cuDevicePrimaryCtxGetState", device)
    if active:
        retained = int(driver("cuDevicePrimaryCtxRetain", device))
        with undo(lambda: driver("cuDevicePrimaryCtxRelease", device)):
            if retained == context:
                return Device(driver, ordinal, context, primary=True)
        driver("cuDevicePrimaryCtxRelease", device)
    return Device(driver, ordinal, context, primary=False)


def release_all(device: Device, steps: Sequence[Callable[[], object]]) -> None:
    """`run_all`, but nothing on a lost device, or in a child of fork(): there nothing can be freed, and the driver has taken
    everything back, or the parent will."""
    if not device.driver.gone:
        run_all(steps)


@functools.cache
def presence() -> tuple[bool, str, tuple[tuple[int, int], ...]]:
    """(whether a GPU can be used, a sentence about it, the compute capabilities); never an error, makes no context.

    Asked once a process: looking for a driver that is not there takes milliseconds.
    """
    try:
        driver = load_driver()
        kinds = driver.api.CUdevice_attribute
        found = []
        for ordinal in range(device_count(driver)):
            device = driver("cuDeviceGet", ordinal)
            major = driver("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
            minor = driver("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
            found.append((int(major), int(minor)))
    except DeviceError as error:
        return False, str(error), ()
    return True, f"{len(found)} CUDA device(s): " + ", ".join("sm{}{}".format(*c) for c in found), tuple(found)
