"""Arrays between this library and others: without a copy, and never read before they were written."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.device import dlpack
from engine.device.arrays import Allocation, DeviceArray, borrow, is_on_device, stream_handle
from engine.device.context import Device
from engine.device.stream import LEGACY_STREAM, Stream
from engine.errors import ArgumentError
from tests.mock_cuda import MockCuda
from tests.unit.test_device import cuda, device

__all__ = ["cuda", "device"]  # fixtures


def test_dlpack_capsules_are_taken_by_numpy_and_torch() -> None:
    torch = pytest.importorskip("torch")
    source = np.arange(6, dtype=np.float32).reshape(2, 3)

    class Host:
        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

        def __dlpack__(self, **_: object) -> Any:
            return dlpack.give(source.ctypes.data, source.shape, source.dtype, (dlpack.CPU, 0), self)

    taken = np.from_dlpack(Host())
    assert taken.tolist() == source.tolist()
    assert np.shares_memory(taken, source)
    tensor = torch.from_dlpack(Host())
    assert tensor.tolist() == source.tolist()
    assert tensor.data_ptr() == source.ctypes.data
    assert len(dlpack._lent) == 2, "both consumers hold what they were given"
    del taken, tensor
    gc.collect()
    assert not dlpack._lent, "both have given it back"
    assert Host().__dlpack__() is not None
    gc.collect()
    assert not dlpack._lent, "a capsule that was never consumed is given back too"


def test_dlpack_capsules_of_numpy_and_torch_are_taken() -> None:
    torch = pytest.importorskip("torch")
    for source in (np.arange(6, dtype=np.float32).reshape(2, 3), torch.arange(6, dtype=torch.int64).reshape(2, 3)):
        found = dlpack.take(source.__dlpack__(), "z")
        address = source.ctypes.data if isinstance(source, np.ndarray) else source.data_ptr()
        assert (found.address, found.shape, str(found.dtype)) == (address, (2, 3), str(source.dtype).removeprefix("torch."))
        assert found.device == (dlpack.CPU, 0)
    with pytest.raises(ArgumentError, match=r"z: found an array .*with strides \(1, 2\), expected a C-contiguous one"):
        dlpack.take(np.zeros((3, 2), np.float32).T.__dlpack__(), "z")
    with pytest.raises(ArgumentError, match=r"z: found a __dlpack__ that gives int, expected a fresh 'dltensor' capsule"):
        dlpack.take(5, "z")
    capsule = np.zeros(2, np.float32).__dlpack__()
    dlpack.take(capsule, "z")
    with pytest.raises(ArgumentError, match="expected a fresh 'dltensor' capsule"):
        dlpack.take(capsule, "z")


def test_a_device_array_says_where_it_is(device: Device, cuda: MockCuda) -> None:
    with device.current():
        array = Allocation(device, {"x": ((4, 2), np.float32)}, LEGACY_STREAM).array("x")
    interface = array.__cuda_array_interface__
    assert (interface["version"], interface["shape"], interface["typestr"]) == (3, (4, 2), "<f4")
    assert interface["data"] == (array.address, False)
    assert (interface["stream"], interface["strides"]) == (None, None), "it is complete and contiguous"
    found = dlpack.take(array.__dlpack__(stream=1), "x")
    assert (found.address, found.shape, found.device) == (array.address, (4, 2), (dlpack.CUDA, 0))
    for wrong in ({"copy": True}, {"dl_device": (dlpack.CPU, 0)}):
        with pytest.raises(BufferError, match=r"given without a copy .*use \.numpy\(\)"):
            array.__dlpack__(**wrong)
    with pytest.raises(ArgumentError, match="found a step of 2"):
        array[::2]


def test_arrays_on_a_device_are_told_from_others() -> None:
    assert is_on_device(SimpleNamespace(__cuda_array_interface__={}))
    assert is_on_device(SimpleNamespace(__dlpack_device__=lambda: (2, 0)))
    assert not is_on_device(np.zeros(2))
    assert not is_on_device([1, 2])


class Foreign:
    """A device array of another library, through its interface alone."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


class Lent:
    """A device array of another library, through DLPack alone."""

    def __init__(self, array: DeviceArray) -> None:
        self.array, self.streams = array, list[Any]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__(stream=stream)


def test_borrowed_arrays_are_waited_for(device: Device, cuda: MockCuda) -> None:
    with device.current():
        array = Allocation(device, {"x": ((4, 2), np.float32)}, LEGACY_STREAM).array("x")
        stream, other = Stream(device), Stream(device)
        lent = Lent(array)
        for value in (array, Foreign(array), Foreign(array, stream=other.handle), lent):
            assert borrow(value, "z", device, stream).address == array.address
        assert lent.streams == [stream.handle], "DLPack's producer orders its work before our stream"
        recorded = [arguments[1] for name, arguments in cuda.calls if name == "cuEventRecord"]
        assert recorded == [LEGACY_STREAM, other.handle]
        for changes, message in (
            ({"typestr": "<f8"}, r"z: found float64\[4, 2\] on device 0, expected float32 on device 0"),
            ({"strides": (4, 16)}, r"z: found a device array with strides \(4, 16\), expected a C-contiguous one"),
        ):
            with pytest.raises(ArgumentError, match=message):
                borrow(Foreign(array, **changes), "z", device, stream)


@pytest.mark.parametrize(
    ("stream", "handle"),
    [
        (7, 7),
        (0, LEGACY_STREAM),
        (SimpleNamespace(cuda_stream=8), 8),
        (SimpleNamespace(ptr=9), 9),
        (SimpleNamespace(handle=10), 10),
        (SimpleNamespace(__cuda_stream__=lambda: (0, 11)), 11),
        (SimpleNamespace(__cuda_stream__=(0, 12)), 12),
    ],
)
def test_streams_of_every_library_are_taken(stream: object, handle: int) -> None:
    assert stream_handle(stream) == handle


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(ArgumentError, match="stream: found str, expected a CUDA stream's handle"):
        stream_handle("0")
