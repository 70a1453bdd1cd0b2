"""Every call of the driver is checked, every failure typed, and everything given back."""

from __future__ import annotations

import gc
import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.cleanup import run_all, undo
from engine.device import context as devices
from engine.device.arrays import Allocation
from engine.device.context import Device, open_device, presence, release_all
from engine.device.driver import BINDINGS, CALLS, load_driver
from engine.device.memory import ALIGNMENT, DeviceBlock, PinnedBlock
from engine.device.stream import Event, Lru, Stream, capture
from engine.errors import ArgumentError, BackendError, CaptureError, DeviceError, DeviceMemoryError, EngineError
from tests.mock_cuda import MockCuda
from tests.processes import forked


def install(monkeypatch: pytest.MonkeyPatch, **machine: Any) -> MockCuda:
    cuda = MockCuda(**machine)
    devices.presence.cache_clear()
    monkeypatch.setitem(sys.modules, BINDINGS, cuda)
    return cuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> MockCuda:
    return install(monkeypatch)


@pytest.fixture
def device(cuda: MockCuda) -> Device:
    return open_device()


# ---- which device ------------------------------------------------------------------------------------


def test_errors_are_of_the_one_family() -> None:
    assert issubclass(DeviceError, BackendError)
    assert issubclass(DeviceError, EngineError)
    assert issubclass(DeviceMemoryError, DeviceError)


def test_without_the_bindings_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, BINDINGS, None)
    message = r"cannot be imported .*expected cuda-bindings.*pip install 'diffusevae-engine\[cuda\]'"
    with pytest.raises(DeviceError, match=message):
        open_device()


def test_old_bindings_are_refused_with_what_they_lack(cuda: MockCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(**{name: None for name in CALLS if name != "cuEventRecordWithFlags"})
    monkeypatch.setitem(sys.modules, BINDINGS, old)
    with pytest.raises(
        DeviceError, match=r"without cuEventRecordWithFlags, expected cuda-bindings 12\.8.*--upgrade cuda-bindings"
    ):
        open_device()


def test_a_missing_driver_is_named(cuda: MockCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(flags: int) -> None:
        raise RuntimeError("libcuda.so.1 not found")

    monkeypatch.setattr(cuda, "cuInit", missing, raising=False)
    with pytest.raises(DeviceError, match=r"no usable CUDA driver \(libcuda\.so\.1 not found\), expected libcuda.*openvino"):
        open_device()


def test_an_old_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version=11080)
    with pytest.raises(DeviceError, match=r"found one for CUDA 11\.8, expected 12\.0 or newer; upgrade the NVIDIA driver"):
        open_device()


def test_a_machine_without_a_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, devices=())
    with pytest.raises(DeviceError, match=r"CUDA_ERROR_NO_DEVICE \(no device\), expected an NVIDIA GPU; .*nvidia-smi"):
        open_device()
    there, about, capabilities = presence()
    assert (there, capabilities) == (False, ())
    assert "CUDA_ERROR_NO_DEVICE" in about


def test_presence_counts_the_devices_without_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch, devices=((8, 6), (9, 0)))
    assert presence() == (True, "2 CUDA device(s): sm86, sm90", ((8, 6), (9, 0)))
    assert cuda.leaks() == {}


@pytest.mark.parametrize(("ordinal", "message"), [(1, "expected 0, the only one"), (-1, "found number -1, expected 0")])
def test_a_wrong_ordinal_is_named(cuda: MockCuda, ordinal: int, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        open_device(ordinal)
    assert cuda.leaks() == {}


@pytest.mark.parametrize("choice", ["0", True, 1.0, [0]])
def test_what_is_no_device_is_refused(cuda: MockCuda, choice: object) -> None:
    with pytest.raises(ArgumentError, match=r"device: found .*, expected None, a device's number, or a CUDA context"):
        open_device(choice)


def test_a_device_knows_what_it_is_and_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = install(monkeypatch, devices=((8, 6), (12, 0)))
    device = open_device(1)
    assert (device.ordinal, device.name, device.sm, repr(device)) == (1, "Mock GPU", "sm120", "<device 1: Mock GPU, sm120>")
    device.share()
    device.release()
    assert cuda.leaks() == {"retained": 1}
    device.release()
    assert cuda.leaks() == {}


def test_a_foreign_context_is_taken_and_left_alone(cuda: MockCuda) -> None:
    cuda.foreign[0x7700] = 0  # as pycuda.autoinit makes one
    cuda.pushed().append(0x7700)
    for device in (open_device(), open_device(SimpleNamespace(handle=0x7700))):
        assert device.context == 0x7700
        device.release()
    assert cuda.retained == [0]
    assert cuda.pushed() == [0x7700]


def test_a_foreign_primary_context_is_shared(cuda: MockCuda) -> None:
    cuda.retained[0] = 1  # as torch or pycuda.autoprimaryctx hold it
    cuda.pushed().append(0x10)
    device = open_device()
    assert device.context == 0x10
    assert cuda.retained == [2], "it must outlive its maker"
    device.release()
    assert cuda.retained == [1]


def test_another_context_beside_the_primary_one_is_not_mistaken_for_it(cuda: MockCuda) -> None:
    cuda.retained[0], cuda.foreign[0x7700] = 1, 0
    device = open_device(SimpleNamespace(handle=0x7700))
    device.release()
    assert (device.context, cuda.retained) == (0x7700, [1])


def test_every_call_that_opening_makes_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(install(monkeypatch).calls)
    probe = install(monkeypatch)
    open_device().release()
    count = len(probe.calls)
    for at in range(count):
        cuda = install(monkeypatch)
        cuda.arm(at)
        with pytest.raises(DeviceError, match=rf"{probe.calls[at][0]}: found CUDA_ERROR_UNKNOWN \(unknown\)"):
            open_device().release()
        released = 1 if cuda.failed == ["cuDevicePrimaryCtxRelease"] else 0
        assert sum(cuda.leaks().values()) == released, probe.calls[at]


# ---- failures ----------------------------------------------------------------------------------------


def test_a_failure_has_the_drivers_text_and_the_purpose(device: Device, cuda: MockCuda) -> None:
    cuda.arm(1, status=1)
    message = r"cuMemAlloc: found CUDA_ERROR_INVALID_VALUE \(invalid value\) at x, expected success"
    with device.current(), pytest.raises(DeviceError, match=message):
        device("cuMemAlloc", 16, purpose="x")


def test_an_unknown_status_keeps_its_number(device: Device, cuda: MockCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "cuMemAlloc", lambda size: (IntEnum("New", {"NEW": 998})(998), None), raising=False)
    with device.current(), pytest.raises(DeviceError, match=r"cuMemAlloc: found status 998"):
        device("cuMemAlloc", 16)


def test_out_of_memory_says_how_much_for_what_and_what_is_free(device: Device, cuda: MockCuda) -> None:
    cuda.free_bytes = 2**20
    with device.current(), pytest.raises(
        DeviceMemoryError, match=r"OUT_OF_MEMORY .* for 2\.0 MiB of a test \(1 of 1048576 MiB are free\).*smaller batch"
    ):
        DeviceBlock(device, {"x": ((2**19,), np.float32)}, "a test", 1)
    assert cuda.leaks() == {"retained": 1}


def test_a_lost_device_is_refused_from_then_on(device: Device, cuda: MockCuda) -> None:
    with device.current():
        stream = Stream(device)
        block = DeviceBlock(device, {"x": ((4,), np.float32)}, "a test", stream.handle)
        cuda.arm(0, status=700)
        with pytest.raises(DeviceError, match=r"ILLEGAL_ADDRESS .*context is lost: start the process again"):
            stream.synchronize()
        cuda.disarm()
        with pytest.raises(
            DeviceError, match=r"device 0 \(Mock GPU\): found that it is lost since cuStreamSynchronize failed"
        ):
            Stream(device)
        block.close()  # nothing can be freed on it any more, and that is no second error
        stream.close()


def test_cleaning_up_goes_on_after_a_failure(device: Device) -> None:
    done: list[int] = []

    def broken() -> None:
        raise DeviceError("first")

    def broken_too() -> None:
        raise DeviceError("second")

    with pytest.raises(DeviceError, match="first"):
        run_all([lambda: done.append(1), broken, broken_too, lambda: done.append(2)])
    assert done == [1, 2]
    with pytest.raises(ValueError, match=r"why \(cleaning up failed too: first\)"), undo(broken):
        raise ValueError("why")
    release_all(device, [])


# ---- memory ------------------------------------------------------------------------------------------


def test_a_block_is_one_allocation_of_aligned_slots(device: Device, cuda: MockCuda) -> None:
    specs: dict[str, Any] = {"a": ((3,), np.uint8), "b": ((2, 3), np.float32), "c": ((1,), np.int64)}
    with device.current():
        stream = Stream(device)
        block = DeviceBlock(device, specs, "a test", stream.handle)
        pinned = PinnedBlock(device, specs, "a test")
        stream.synchronize()
        assert cuda.count("cuMemAlloc") == 1
        assert [slot.offset for slot in block.slots.values()] == [0, ALIGNMENT, 2 * ALIGNMENT]
        assert all(slot.address % ALIGNMENT == 0 for slot in block.slots.values())
        assert not cuda.view(block.address, (block.nbytes,), np.uint8).any(), "device memory starts as zeros"
        assert block["b"].at(1) == block["b"].address + 12
        pinned.array("b")[:] = 7
        assert cuda.view(pinned["b"].address, (6,), np.float32).tolist() == [7] * 6
        for item in (block, block, pinned, stream):
            item.close()
    device.release()
    assert cuda.leaks() == {}


def test_an_allocation_lives_as_long_as_its_arrays(device: Device, cuda: MockCuda) -> None:
    with device.current():
        stream = Stream(device)
        allocation = Allocation(device, {"x": ((4, 2), np.float32)}, stream.handle)
        array = allocation.array("x")
        stream.synchronize()
        stream.close()
    part = array[1:3]
    del allocation, array
    device.release()
    gc.collect()
    assert cuda.leaks() == {"memory": 1, "retained": 1}
    assert part.shape == (2, 2)
    assert part.numpy().tolist() == [[0, 0], [0, 0]]
    del part
    gc.collect()
    assert cuda.leaks() == {}


def test_a_child_of_fork_is_refused_and_gives_nothing_back(device: Device, cuda: MockCuda) -> None:
    with device.current():
        stream = Stream(device)
        kept = [Allocation(device, {"x": ((4, 2), np.float32)}, stream.handle).array("x")]

    def calls() -> str:
        told, before = [], len(cuda.calls)
        for call in (load_driver, open_device, stream.synchronize, lambda: device("cuMemGetInfo")):
            with pytest.raises(DeviceError, match=r"CUDA: .*a fork.* leaves behind.*native or openvino.*'spawn'") as error:
                call()
            told.append(error)
        kept.clear()
        gc.collect()
        release_all(device, [stream.close])
        device.release()
        return f"{len(told)} refused, {len(cuda.calls) - before} calls"

    assert forked(calls) == "4 refused, 0 calls"
    assert kept[0].numpy().tolist() == [[0, 0]] * 4, "the parent is untouched"


# ---- streams, events, graphs -------------------------------------------------------------------------


def test_events_tell_the_time_between_them(device: Device, cuda: MockCuda) -> None:
    with device.current():
        stream, first, last = Stream(device), Event(device), Event(device)
        first.record(stream.handle)
        last.record(stream.handle)
        with pytest.raises(DeviceError, match="NOT_READY"):
            last.since(first)
        stream.synchronize()
        assert last.since(first) == 1.0
        for item in (last, first, stream):
            item.close()
            item.close()
    device.release()
    assert cuda.leaks() == {}


def test_a_captured_graph_runs_when_launched_and_not_before(device: Device, cuda: MockCuda) -> None:
    with device.current():
        stream, event = Stream(device), Event(device)
        block = DeviceBlock(device, {"x": ((4,), np.uint8)}, "a test", stream.handle)
        stream.synchronize()

        def enqueue() -> None:
            device("cuMemsetD8Async", block.address, 9, 4, stream.handle)
            event.record(stream.handle, capturing=True)

        replay = capture(stream, enqueue)
        stream.synchronize()
        assert not cuda.view(block.address, (4,), np.uint8).any()
        replay.launch(stream)
        stream.synchronize()
        assert cuda.view(block.address, (4,), np.uint8).tolist() == [9] * 4
        for item in (replay, block, event, stream):
            item.close()
    device.release()
    assert cuda.leaks() == {}


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuMemsetD8Async"])
def test_a_refused_capture_is_typed_and_leaves_the_stream_usable(device: Device, cuda: MockCuda, call: str) -> None:
    with device.current():
        stream = Stream(device)
        block = DeviceBlock(device, {"x": ((4,), np.uint8)}, "a test", stream.handle)
        cuda.fail_call = call
        with pytest.raises(CaptureError, match=rf"capture of the chain into a CUDA graph: {call}: found CUDA_ERROR_UNKNOWN"):
            capture(stream, lambda: device("cuMemsetD8Async", block.address, 9, 4, stream.handle))
        cuda.disarm()
        device("cuMemsetD8Async", block.address, 5, 4, stream.handle)
        stream.synchronize()
        assert cuda.view(block.address, (4,), np.uint8).tolist() == [5] * 4
        block.close()
        stream.close()
    device.release()
    assert cuda.leaks() == {}


def test_the_cache_keeps_the_last_ones_and_closes_the_others(device: Device) -> None:
    closed: list[str] = []
    cache: Lru[Any] = Lru(2)

    def make(name: str) -> Any:
        return SimpleNamespace(close=lambda: closed.append(name))

    for name in ("a", "b", "a", "c"):
        cache.get(name, lambda name=name: make(name))
    assert closed == ["b"]
    cache.drop("a")
    cache.drop("none")
    cache.close(device)
    assert closed == ["b", "a", "c"]


# ---- the real bindings -------------------------------------------------------------------------------


def without_driver() -> bool:
    """Whether the real bindings are here and have no driver to call: then calls are tried without effect."""
    real = pytest.importorskip(BINDINGS)
    try:
        real.cuInit(0)
    except RuntimeError:
        return True
    return False


def test_the_real_bindings_have_every_call() -> None:
    real = pytest.importorskip(BINDINGS)
    assert [name for name in CALLS if not hasattr(real, name)] == []


def test_the_real_bindings_without_a_driver_give_a_typed_error() -> None:
    if not without_driver():
        pytest.skip("this machine has a CUDA driver")
    with pytest.raises(DeviceError, match=r"cuInit: found no usable CUDA driver \(.*\), expected libcuda"):
        load_driver()
