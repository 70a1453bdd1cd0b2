"""The order of the device's work: streams, events with their times, and a sequence of calls captured into a graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from engine.cleanup import note, undo
from engine.device.context import Device, release_all
from engine.errors import CaptureError, DeviceError, EngineError

LEGACY_STREAM = 1  # CU_STREAM_LEGACY: what a library without streams of its own works on


class Stream:
    """A stream of our own, which never waits for the legacy default stream by itself."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.handle = int(device("cuStreamCreate", int(device.driver.api.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def synchronize(self) -> None:
        """Return when all that was enqueued is done; an error of earlier work comes out here."""
        self.device("cuStreamSynchronize", self.handle, purpose="the end of a run")

    def wait_for(self, other: int) -> None:
        """Let what follows here wait for what was enqueued in the stream `other` (a handle) until now."""
        event = Event(self.device, timing=False)
        try:
            event.record(other)
            self.device("cuStreamWaitEvent", self.handle, event.handle, 0)
        finally:
            event.close()

    def close(self) -> None:
        if self.handle:
            handle, self.handle = self.handle, 0
            release_all(self.device, [lambda: self.device("cuStreamDestroy", handle)])


class Event:
    """A mark in a stream; the time between two of them is the device's own."""

    def __init__(self, device: Device, *, timing: bool = True) -> None:
        self.device = device
        flags = device.driver.api.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        self.handle = int(device("cuEventCreate", int(flag)))

    def record(self, stream: int, *, capturing: bool = False) -> None:
        """Put the mark here. While capturing, as a node of the graph, so that every replay sets it."""
        if capturing:
            external = int(self.device.driver.api.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)
            self.device("cuEventRecordWithFlags", self.handle, stream, external)
        else:
            self.device("cuEventRecord", self.handle, stream)

    def since(self, earlier: Event) -> float:
        """Milliseconds from `earlier` to this mark, both reached."""
        return float(self.device("cuEventElapsedTime", earlier.handle, self.handle))

    def close(self) -> None:
        if self.handle:
            handle, self.handle = self.handle, 0
            release_all(self.device, [lambda: self.device("cuEventDestroy", handle)])


class Replay:
    """A captured graph, ready to run again with one launch."""

    def __init__(self, device: Device, executable: int) -> None:
        self.device, self._executable = device, executable

    def launch(self, stream: Stream) -> None:
        self.device("cuGraphLaunch", self._executable, stream.handle, purpose="the launch of a captured chain")

    def close(self) -> None:
        if self._executable:
            executable, self._executable = self._executable, 0
            release_all(self.device, [lambda: self.device("cuGraphExecDestroy", executable)])


def capture(stream: Stream, enqueue: Callable[[], None]) -> Replay:
    """Everything that `enqueue` puts into the stream, as a graph; nothing of it runs.

    CaptureError when any of the calls refuses to be captured; the stream then works as before.
    """
    device = stream.device
    try:
        graph = _record(device, stream, enqueue)
        with undo(lambda: device("cuGraphDestroy", graph)):
            executable = int(device("cuGraphInstantiate", graph, 0, purpose="making a captured graph executable"))
        replay = Replay(device, executable)
        with undo(replay.close):
            device("cuGraphDestroy", graph)
        return replay
    except EngineError as error:
        if device.driver.lost is not None:
            raise
        raise CaptureError(f"capture of the chain into a CUDA graph: {error}") from error


def _record(device: Device, stream: Stream, enqueue: Callable[[], None]) -> int:
    # Only this thread's calls are watched: another clone may allocate meanwhile.
    mode = device.driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    device("cuStreamBeginCapture", stream.handle, mode)
    try:
        enqueue()
    except BaseException as error:
        _abandon(device, stream, error)
        raise
    return int(device("cuStreamEndCapture", stream.handle))


def _abandon(device: Device, stream: Stream, error: BaseException) -> None:
    """End a capture that failed: the stream is usable again, and what was captured is thrown away."""
    try:
        graph = int(device("cuStreamEndCapture", stream.handle) or 0)
    except DeviceError:
        return  # the usual answer for an invalidated capture, and it has ended; `error` says why it was
    if graph:
        try:
            device("cuGraphDestroy", graph)
        except DeviceError as second:
            note(error, second)


class Closable(Protocol):
    def close(self) -> None: ...


Entry = TypeVar("Entry", bound=Closable)


class Lru(Generic[Entry]):
    """The entries used last, at most `limit`; what falls out is closed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Entry]) -> Entry:
        """The entry of `key`, made when it is new. Room is made first: the device never holds one too many."""
        if key not in self.entries:
            while len(self.entries) >= self.limit:
                self.entries.popitem(last=False)[1].close()
            self.entries[key] = make()
        self.entries.move_to_end(key)
        return self.entries[key]

    def drop(self, key: Hashable) -> None:
        """Close one entry, if it is there."""
        if key in self.entries:
            self.entries.pop(key).close()

    def close(self, device: Device) -> None:
        """Close all."""
        entries = list(self.entries.values())
        self.entries.clear()
        release_all(device, [entry.close for entry in entries])
