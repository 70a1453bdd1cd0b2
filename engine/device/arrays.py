"""Arrays of a program that keeps its data on the GPU: ours, which other libraries take as they are, and theirs.

Through `__cuda_array_interface__` and DLPack: torch.as_tensor(a), torch.from_dlpack(a), cupy.asarray(a).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.device import dlpack
from engine.device.context import Device
from engine.device.memory import DeviceBlock, Spec
from engine.device.stream import LEGACY_STREAM, Stream
from engine.errors import ArgumentError
from engine.result import Batch, Setting, Timings


class DeviceArray:
    """A C-contiguous array in a GPU's memory, complete.

    Attributes: address, shape, dtype, device. Slices along the first axis share its memory.
    """

    def __init__(self, device: Device, address: int, shape: tuple[int, ...], dtype: Any, owner: object) -> None:
        self.device, self.address, self.shape, self.dtype = device, address, shape, np.dtype(dtype)
        self._owner = owner

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; no stream to wait for, since the array is complete."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.ordinal

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """A capsule over this memory. The array is complete: the consumer's stream has nothing to wait for."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError(f"{self!r} is given without a copy and on its own device only; use .numpy() for the host")
        return dlpack.give(self.address, self.shape, self.dtype, self.__dlpack_device__(), self)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> DeviceArray:
        """Entries begin..end along the first axis."""
        begin, end, step = index.indices(self.shape[0])
        if step != 1:
            raise ArgumentError(f"index: found a step of {step}, expected slices of step 1: device arrays are contiguous")
        address = self.address + begin * (self.nbytes // max(1, self.shape[0]))
        return DeviceArray(self.device, address, (max(0, end - begin), *self.shape[1:]), self.dtype, self._owner)

    def numpy(self) -> npt.NDArray[Any]:
        """A copy on the host."""
        values = np.empty(self.shape, self.dtype)
        with self.device.current():
            stream = Stream(self.device)
            try:
                if values.nbytes:
                    self.device("cuMemcpyDtoHAsync", values.ctypes.data, self.address, values.nbytes, stream.handle)
                stream.synchronize()
            finally:
                stream.close()
        return values

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype}{list(self.shape)} on {self.device!r}>"


class Allocation:
    """Device memory that lives as long as an array of it is used, or until `close`; needs no open Sampler."""

    def __init__(self, device: Device, specs: Mapping[str, Spec], stream: int) -> None:
        self._block = DeviceBlock(device, specs, "results", stream)
        self.device = device.share()
        self.close = weakref.finalize(self, _free, self._block, self.device)
        self.close.atexit = False  # at the end of the process the driver takes everything back

    def array(self, name: str) -> DeviceArray:
        slot = self._block[name]
        return DeviceArray(self.device, slot.address, slot.shape, slot.dtype, self)


def _free(block: DeviceBlock, device: Device) -> None:
    try:
        if not device.driver.gone:
            with device.current():
                block.close()
    finally:
        device.release()


@dataclass(frozen=True)
class DeviceBatch:
    """A `Batch` whose images, x and values stay on the device, complete; the arrays are the caller's own."""

    images: DeviceArray
    x: DeviceArray
    values: dict[str, DeviceArray]
    seeds: npt.NDArray[np.uint64]
    timesteps: npt.NDArray[np.int64]
    setting: Setting
    timings: Timings
    start_name: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    def numpy(self) -> Batch:
        """The same on the host."""
        return Batch(
            images=self.images.numpy(),
            x=self.x.numpy(),
            values={name: array.numpy() for name, array in self.values.items()},
            seeds=self.seeds,
            timesteps=self.timesteps,
            setting=self.setting,
            timings=self.timings,
            start_name=self.start_name,
        )


def is_on_device(value: object) -> bool:
    """Whether `value` is an array in a GPU's memory, of whatever library."""
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in dlpack.CUDA_KINDS


def stream_handle(stream: object) -> int:
    """The driver's handle of a caller's stream: a number, or a stream of torch, CuPy, numba, pycuda or cuda-core."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream or LEGACY_STREAM
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1]) or LEGACY_STREAM
    for attribute in ("cuda_stream", "ptr", "handle"):  # torch; CuPy; pycuda, numba
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute)) or LEGACY_STREAM
    raise ArgumentError(
        f"stream: found {type(stream).__name__}, expected a CUDA stream's handle (a number), or a stream object of torch, "
        f"CuPy, numba, pycuda or cuda-core"
    )


def borrow(value: Any, name: str, device: Device, stream: Stream, dtype: str = "float32") -> DeviceArray:
    """The memory of a caller's device array of `dtype` as a DeviceArray; `stream` waits until it has been written.

    An array that does not say in which stream that is counts as written in the legacy default stream, where libraries
    work by default.
    """
    if isinstance(value, DeviceArray):
        found = dlpack.Described(value.address, value.shape, value.dtype, value.__dlpack_device__(), value)
    elif hasattr(value, "__cuda_array_interface__"):
        interface = value.__cuda_array_interface__
        found = _described(interface, name, device, value)
        stream.wait_for(int(interface.get("stream") or LEGACY_STREAM))
    else:
        found = dlpack.take(value.__dlpack__(stream=stream.handle), name)
    if found.dtype != np.dtype(dtype) or found.device[1] != device.ordinal:
        raise ArgumentError(
            f"{name}: found {found.dtype}{list(found.shape)} on device {found.device[1]}, expected {dtype} on device "
            f"{device.ordinal}, where this Sampler runs; convert or move it"
        )
    return DeviceArray(device, found.address, found.shape, found.dtype, found.owner)


def _described(interface: dict[str, Any], name: str, device: Device, owner: object) -> dlpack.Described:
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    elements = None if strides is None else tuple(stride // dtype.itemsize for stride in strides)
    if not dlpack.is_contiguous(shape, elements):
        raise ArgumentError(
            f"{name}: found a device array with strides {strides}, expected a C-contiguous one; make it contiguous first"
        )
    return dlpack.Described(int(interface["data"][0]), shape, dtype, (dlpack.CUDA, device.ordinal), owner)
