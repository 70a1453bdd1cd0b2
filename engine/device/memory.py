"""The memory of a run's arrays: one allocation cut into named slots, on the device or pinned on the host."""

from __future__ import annotations

import ctypes
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.cleanup import undo
from engine.device.context import Device, release_all

ALIGNMENT = 256  # what TensorRT asks of every address, and more than any vector access needs

Spec = tuple[Sequence[int], Any]  # shape, dtype


@dataclass(frozen=True)
class Slot:
    """A named piece of an allocation: C-contiguous."""

    address: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def at(self, index: int) -> int:
        """The address of entry `index` along the first axis."""
        return self.address + index * (self.nbytes // self.shape[0])


class Block(ABC):
    """One allocation that holds all slots of `specs`, in their order; `close` gives it back."""

    def __init__(self, device: Device, specs: Mapping[str, Spec], what: str) -> None:
        self.device = device
        offsets, total = {}, 0
        for name, (shape, dtype) in specs.items():
            offsets[name] = total
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            total += -(-nbytes // ALIGNMENT) * ALIGNMENT
        self.nbytes = max(total, ALIGNMENT)
        self.address = self._allocate(f"{self.nbytes / 2**20:.1f} MiB of {what}")
        self.slots = {
            name: Slot(self.address + offsets[name], offsets[name], tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in specs.items()
        }

    def __getitem__(self, name: str) -> Slot:
        return self.slots[name]

    def __contains__(self, name: str) -> bool:
        return name in self.slots

    def close(self) -> None:
        """Give the memory back; harmless when that is done."""
        if self.address:
            address, self.address = self.address, 0
            release_all(self.device, [lambda: self._free(address)])

    @abstractmethod
    def _allocate(self, purpose: str) -> int:
        """The address of `self.nbytes` new bytes."""

    @abstractmethod
    def _free(self, address: int) -> None:
        """Give them back."""


class DeviceBlock(Block):
    """Device memory, all bytes 0 at first."""

    def __init__(self, device: Device, specs: Mapping[str, Spec], what: str, stream: int) -> None:
        super().__init__(device, specs, what)
        with undo(self.close):
            device("cuMemsetD8Async", self.address, 0, self.nbytes, stream)

            def wait() -> None:
                device("cuStreamSynchronize", stream, purpose="zeroing memory")

            with undo(wait):  # what is still being written must not be given back
                wait()

    def _allocate(self, purpose: str) -> int:
        return int(self.device("cuMemAlloc", self.nbytes, purpose=purpose))

    def _free(self, address: int) -> None:
        self.device("cuMemFree", address)


class PinnedBlock(Block):
    """Page-locked host memory: copies from and to it run beside the host. Slots are numpy arrays through `array`."""

    def __init__(self, device: Device, specs: Mapping[str, Spec], what: str) -> None:
        super().__init__(device, specs, f"pinned host memory for {what}")
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.address))
        self._bytes[:] = 0

    def array(self, name: str) -> npt.NDArray[Any]:
        """The slot's memory as an array, valid until `close`."""
        slot = self.slots[name]
        return self._bytes[slot.offset : slot.offset + slot.nbytes].view(slot.dtype).reshape(slot.shape)

    def _allocate(self, purpose: str) -> int:
        return int(self.device("cuMemAllocHost", self.nbytes, purpose=purpose))

    def _free(self, address: int) -> None:
        self.device("cuMemFreeHost", address)
