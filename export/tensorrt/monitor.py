"""The progress of a TensorRT build, and its stop. Nothing may be raised inside it: the bindings swallow exceptions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import EngineError


@contextmanager
def interrupt_held_back() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C instead of raising it, and yield whether it came; raise it afterwards.

    A build calls back into Python thousands of times with its messages: KeyboardInterrupt would be raised in one of those
    calls, printed and lost. Only the main thread can, and needs to, do this.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: False
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)  # to whoever handled it before: KeyboardInterrupt unless changed


def make_monitor(module: Any, report: Callable[[str, int, int], None], interrupted: Callable[[], bool]) -> Any:
    """An IProgressMonitor that calls report(phase, done, total) and ends the build when `interrupted()`.

    An EngineError of `report` ends it as well; `raise_again()` raises it when the build has returned.
    """

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.stopped: EngineError | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return self.stopped is None and not interrupted()

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.totals.get(phase_name, 0))

        def tell(self, phase: str, done: int) -> None:
            try:
                if self.stopped is None:
                    report(phase, done, self.totals.get(phase, 0))
            except EngineError as error:
                self.stopped = error

        def raise_again(self) -> None:
            if self.stopped is not None:
                raise self.stopped

    return Monitor()
