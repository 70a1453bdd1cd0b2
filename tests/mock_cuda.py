"""The GPU runtime without a GPU: a driver that works on host memory, records every call and fails on command.

Addresses are real ones, work is done when it is waited for (so that a missing wait shows), kernels run on the CPU
kernels with the same bits, and every object that was made and not given back is counted.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from engine.kernels import cuda_module
from tests.mock_kernels import MockKernels
from tests.mock_status import NAMES, CUresult

FIRST_HANDLE = 0x1000
RELEASES = frozenset({
    "cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy",
    "cuModuleUnload", "cuDevicePrimaryCtxRelease", "cuCtxPopCurrent",
})  # fmt: skip
# What a real driver refuses while the calling thread captures.
NOT_WHILE_CAPTURING = frozenset({"cuMemAlloc", "cuMemFree", "cuMemAllocHost", "cuMemFreeHost", "cuStreamSynchronize"})


class MisuseError(AssertionError):
    """The runtime did what would corrupt memory on a real GPU."""


@dataclass
class Work:
    """A stream's queue, or what it captures."""

    queue: list[Callable[[], None]] = field(default_factory=list)
    captured: list[Callable[[], None]] | None = None
    broken: bool = False


@dataclass
class Mark:
    """An event: where in time it was reached, and what has to be done to reach it."""

    time: float | None = None
    stream: int | None = None


class MockCuda(MockKernels):
    """Stands where `cuda.bindings.driver` stands. One instance is one machine.

    calls     names and arguments of all calls, in order
    fail_at   the index of a call (counted from `arm`) that fails with `status`
    live      what exists: {"memory", "pinned", "streams", ...: {handle: object}}
    """

    def __init__(self, devices: tuple[tuple[int, int], ...] = ((8, 6),), version: int = 13000) -> None:
        self.devices, self.version = devices, version
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fail_at: int | None = None
        self.fail_call: str | None = None
        self.status = 999
        self.sticky = False
        self.failed: list[str] = []
        self.free_bytes = 2**40
        self.capturable = True
        self.live: dict[str, dict[int, Any]] = {
            kind: {} for kind in ("memory", "pinned", "streams", "events", "graphs", "executables", "modules", "retained")
        }
        self.retained = [0] * len(devices)
        self.foreign: dict[int, int] = {}  # context of another library -> its device
        self.functions: dict[int, tuple[int, str]] = {}
        self.stack = threading.local()
        self.clock = itertools.count()
        self._handles = itertools.count(FIRST_HANDLE, 16)
        self.work: dict[int, Work] = {1: Work()}
        self.CUresult = CUresult
        self.CUdevice_attribute = IntEnum("CUdevice_attribute", {
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR": 75, "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR": 76,
        })  # fmt: skip
        self.CUstream_flags = IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
        self.CUevent_flags = IntEnum("CUevent_flags", {"CU_EVENT_DEFAULT": 0, "CU_EVENT_DISABLE_TIMING": 2})
        self.CUevent_record_flags = IntEnum("CUevent_record_flags", {"CU_EVENT_RECORD_EXTERNAL": 1})
        self.CUstreamCaptureMode = IntEnum("CUstreamCaptureMode", {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})

    # ---- for tests -------------------------------------------------------------------------------

    def arm(self, at: int, status: int = 999) -> None:
        """Let the call number `at` from now on fail."""
        self.fail_at, self.status, self.failed = len(self.calls) + at, status, []

    def disarm(self) -> None:
        self.fail_at = self.fail_call = None

    def leaks(self) -> dict[str, int]:
        """How many objects of each kind exist; nothing where all is given back."""
        depth = len(getattr(self.stack, "contexts", []))
        counted = {kind: len(objects) for kind, objects in self.live.items()} | {
            "retained": sum(self.retained), "contexts pushed": depth
        }  # fmt: skip
        return {kind: count for kind, count in counted.items() if count}

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)

    def pushed(self) -> list[int]:
        """The calling thread's stack of contexts."""
        if not hasattr(self.stack, "contexts"):
            self.stack.contexts = []
        found: list[int] = self.stack.contexts
        return found

    def enter(self, name: str, arguments: tuple[Any, ...]) -> int | None:
        """Record a call; the status with which it must fail, or None."""
        index = len(self.calls)
        self.calls.append((name, arguments))
        if index == self.fail_at or name == self.fail_call:
            self.failed.append(name)
            return self.status
        if self.sticky and self.failed and name.startswith("cu") and not name.startswith("cuGetError"):
            return self.status
        return None

    # ---- the machine -----------------------------------------------------------------------------

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Live memory as an array; MisuseError outside of what is allocated."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for kind in ("memory", "pinned"):
            for start, buffer in self.live[kind].items():
                if start <= address and address + nbytes <= start + len(buffer):
                    raw = np.ctypeslib.as_array(buffer)[address - start : address - start + nbytes]
                    return raw.view(dtype).reshape(shape)
        raise MisuseError(f"{nbytes} bytes at {address:#x} are not inside any live allocation")

    def put(self, stream: int, work: Callable[[], None]) -> int:
        """Enqueue, or capture; the call's status."""
        if stream not in self.work:
            return 400
        lane = self.work[stream]
        if lane.captured is not None:
            lane.captured.append(work)
        else:
            lane.queue.append(work)
        return 0

    def drain(self, stream: int) -> None:
        """Do all that was enqueued in a stream."""
        queue = self.work[stream].queue
        while queue:
            queue.pop(0)()

    def capturing(self) -> list[Work]:
        return [lane for lane in self.work.values() if lane.captured is not None]

    def new(self, kind: str, thing: Any) -> int:
        handle = next(self._handles)
        self.live[kind][handle] = thing
        return handle

    def allocate(self, kind: str, nbytes: int) -> tuple[int, int | None]:
        used = sum(len(buffer) for buffer in self.live["memory"].values())
        if nbytes <= 0:
            return 1, None
        if kind == "memory" and used + nbytes > self.free_bytes:
            return 2, None
        backing = np.full(nbytes + 512, 0xAA, np.uint8)  # fresh memory holds anything but zeros
        address = -(-backing.ctypes.data // 256) * 256
        buffer = (ctypes.c_uint8 * nbytes).from_address(address)
        buffer.keep = backing  # type: ignore[attr-defined]
        self.live[kind][address] = buffer
        return 0, address

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        body = getattr(MockCuda, f"_{name}", None)
        if body is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            status = self.enter(name, arguments)
            values: tuple[Any, ...] = ()
            if status is not None and name == "cuStreamEndCapture":
                self.work[arguments[0]].captured = None  # a capture has ended, whatever the call says
            if status is None and name in NOT_WHILE_CAPTURING and self.capturing():
                status = 900
                for lane in self.capturing():
                    lane.broken = True
            if status is None and _needs_context(name) and not self.pushed():
                status = 201
            if status is None:
                status, *rest = body(self, *arguments)
                values = tuple(rest)
            return CUresult(status), *(values or (None,) * (not name.startswith(_WITHOUT_RESULT)))

        return call

    def _cuInit(self, flags: int) -> tuple[Any, ...]:
        return (0,) if self.devices else (100,)

    def _cuDriverGetVersion(self) -> tuple[Any, ...]:
        return 0, self.version

    def _cuGetErrorName(self, status: Any) -> tuple[Any, ...]:
        return 0, NAMES[int(status)].encode()

    def _cuGetErrorString(self, status: Any) -> tuple[Any, ...]:
        return 0, NAMES[int(status)].removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode()

    def _cuDeviceGetCount(self) -> tuple[Any, ...]:
        return 0, len(self.devices)

    def _cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return (0, ordinal) if 0 <= ordinal < len(self.devices) else (101,)

    def _cuDeviceGetName(self, length: int, device: int) -> tuple[Any, ...]:
        return 0, b"Mock GPU".ljust(length, b"\0")

    def _cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[Any, ...]:
        return 0, self.devices[device][int(attribute) - 75]

    def _cuDevicePrimaryCtxGetState(self, device: int) -> tuple[Any, ...]:
        return 0, 0, int(self.retained[device] > 0)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        self.retained[device] += 1
        return 0, 0x10 + device

    def _cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any, ...]:
        self.retained[device] -= 1
        return (0,) if self.retained[device] >= 0 else (201,)

    def _cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return 0, (self.pushed() or [0])[-1]

    def _cuCtxGetDevice(self) -> tuple[Any, ...]:
        context = self.pushed()[-1]
        return 0, self.foreign.get(context, context - 0x10)

    def _cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:
        known = context in self.foreign or (0 <= context - 0x10 < len(self.devices) and self.retained[context - 0x10] > 0)
        if not known:
            return (201,)
        self.pushed().append(context)
        return (0,)

    def _cuCtxPopCurrent(self) -> tuple[Any, ...]:
        return 0, self.pushed().pop()

    def _cuMemGetInfo(self) -> tuple[Any, ...]:
        return 0, self.free_bytes, 2**40

    def _cuMemAlloc(self, nbytes: int) -> tuple[Any, ...]:
        return self.allocate("memory", nbytes)

    def _cuMemAllocHost(self, nbytes: int) -> tuple[Any, ...]:
        return self.allocate("pinned", nbytes)

    def _cuMemFree(self, address: int) -> tuple[Any, ...]:
        return (0,) if self.live["memory"].pop(address, None) is not None else (1,)

    def _cuMemFreeHost(self, address: int) -> tuple[Any, ...]:
        return (0,) if self.live["pinned"].pop(address, None) is not None else (1,)

    def _cuMemsetD8Async(self, address: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        return (self.put(stream, lambda: self.view(address, (count,), np.uint8).fill(value)),)

    def _copy(self, target: int, source: int, nbytes: int, stream: int) -> tuple[Any, ...]:
        def work() -> None:
            self.view(target, (nbytes,), np.uint8)[:] = self.view(source, (nbytes,), np.uint8)

        return (self.put(stream, work),)

    _cuMemcpyHtoDAsync = _cuMemcpyDtoDAsync = _copy

    def _cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: int) -> tuple[Any, ...]:
        if any(start <= target < start + len(buffer) for start, buffer in self.live["pinned"].items()):
            return self._copy(target, source, nbytes, stream)
        # Into pageable memory: as the driver does, the work before it is waited for, and the copy made.
        self.drain(stream)
        ctypes.memmove(target, self.view(source, (nbytes,), np.uint8).ctypes.data, nbytes)
        return (0,)

    def _cuStreamCreate(self, flags: int) -> tuple[Any, ...]:
        handle = self.new("streams", flags)
        self.work[handle] = Work()
        return 0, handle

    def _cuStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return (0,) if self.live["streams"].pop(stream, None) is not None and self.work.pop(stream) else (400,)

    def _cuStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if stream not in self.work:
            return (400,)
        self.drain(stream)
        return (0,)

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        mark = self.live["events"][event]
        behind = mark.stream  # the event may be recorded again, or destroyed, before the wait is over
        return (self.put(stream, lambda: self.drain(behind) if behind is not None else None),)

    def _cuStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        if not self.capturable:
            return (900,)
        self.work[stream].captured, self.work[stream].broken = [], False
        return (0,)

    def _cuStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        lane = self.work[stream]
        captured, lane.captured = lane.captured, None
        if captured is None or lane.broken:
            return (901,)
        return 0, self.new("graphs", captured)

    def _cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return 0, self.new("executables", list(self.live["graphs"][graph]))

    def _cuGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        return (0,) if self.live["graphs"].pop(graph, None) is not None else (400,)

    def _cuGraphLaunch(self, executable: int, stream: int) -> tuple[Any, ...]:
        nodes = self.live["executables"].get(executable)
        if nodes is None:
            return (400,)
        return (self.put(stream, lambda: [node() for node in nodes] and None),)

    def _cuGraphExecDestroy(self, executable: int) -> tuple[Any, ...]:
        return (0,) if self.live["executables"].pop(executable, None) is not None else (400,)

    def _cuEventCreate(self, flags: int) -> tuple[Any, ...]:
        return 0, self.new("events", Mark())

    def _cuEventDestroy(self, event: int) -> tuple[Any, ...]:
        return (0,) if self.live["events"].pop(event, None) is not None else (400,)

    def _cuEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        if self.work[stream].captured is not None:
            raise MisuseError("a plain record in a capture is only an edge of the graph: the event is never set")
        mark = self.live["events"][event]
        mark.time, mark.stream = None, stream
        return (self.put(stream, lambda: setattr(mark, "time", float(next(self.clock)))),)

    def _cuEventRecordWithFlags(self, event: int, stream: int, flags: int) -> tuple[Any, ...]:
        mark = self.live["events"][event]
        return (self.put(stream, lambda: setattr(mark, "time", float(next(self.clock)))),)

    def _cuEventElapsedTime(self, start: int, end: int) -> tuple[Any, ...]:
        first, last = self.live["events"][start].time, self.live["events"][end].time
        return (600,) if first is None or last is None else (0, last - first)

    def _cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        return (0, self.new("modules", image)) if isinstance(image, bytes) and image else (200,)

    def _cuModuleUnload(self, module: int) -> tuple[Any, ...]:
        return (0,) if self.live["modules"].pop(module, None) is not None else (400,)

    def _cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any, ...]:
        if name.decode() not in cuda_module.KERNELS:
            return (500,)
        handle = next(self._handles)
        self.functions[handle] = module, name.decode()
        return 0, handle

    def _cuLaunchKernel(
        self, function: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, shared: int, stream: int,
        parameters: int, extra: int,
    ) -> tuple[Any, ...]:  # fmt: skip
        module, name = self.functions[function]
        if module not in self.live["modules"]:
            return (400,)
        if (bx, by, bz, shared) != (cuda_module.BLOCK, 1, 1, 0):
            return (1,)
        pointers = (ctypes.c_void_p * cuda_module.KERNELS[name]).from_address(parameters)
        words = [ctypes.c_int64.from_address(pointer or 0).value for pointer in pointers]
        return (self.put(stream, lambda: self.run_kernel(name, (gx, gy, gz), words)),)


_WITHOUT_RESULT = (
    "cuInit", "cuDevicePrimaryCtxRelease", "cuCtxPushCurrent", "cuMemFree", "cuMemset", "cuMemcpy", "cuStreamDestroy",
    "cuStreamSynchronize", "cuStreamWait", "cuStreamBegin", "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy",
    "cuEventDestroy", "cuEventRecord", "cuModuleUnload", "cuLaunchKernel",
)  # fmt: skip
_FREE_OF_CONTEXT = ("cuInit", "cuDriver", "cuGetError", "cuDevice", "cuCtxGetCurrent", "cuCtxPush", "cuCtxPop")


def _needs_context(name: str) -> bool:
    return not name.startswith(_FREE_OF_CONTEXT)
