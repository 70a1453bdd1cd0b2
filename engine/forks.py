"""The rules of fork(): threads and devices stay with the process that first used them, and are never ended by another."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

from engine.errors import BackendError, DeviceError


class OneProcess:
    """A runtime with state of its whole process, which a child of fork() has no working copy of, nor can make again.

    name    its name in messages
    others  the backends that such a child can open instead
    kind    of the error
    """

    def __init__(self, name: str, others: str, kind: type[BackendError] = BackendError) -> None:
        self.name, self.others, self.kind = name, others, kind
        self._process: int | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether a process uses it that this one was forked from."""
        return self._process not in (None, os.getpid())

    def check(self) -> None:
        """`kind` where it is `elsewhere`."""
        if self.elsewhere:
            raise forked(self.name, self)

    def enter(self) -> None:
        """Say that this process uses it from now on: later children are refused. `kind` where it is `elsewhere`."""
        self.check()
        self._process = os.getpid()


# The driver does not survive a fork(): a child's first call fails, initialised again or not.
CUDA = OneProcess("CUDA", "native or openvino", DeviceError)


def forked(what: str, runtime: OneProcess | None = None) -> BackendError:
    """The refusal of what was opened before a fork(). runtime: its own where that works in one process only."""
    kind, cure = BackendError, "open the bundle again here, or start processes by 'spawn'"
    if runtime is not None:
        kind = runtime.kind
        cure = (
            f"open the bundle here with another backend, such as {runtime.others}, start processes by 'spawn', or fork "
            f"before {runtime.name} is first used"
        )
    return kind(
        f"{what}: found that it was opened by the parent of this process, whose threads and devices a fork() leaves "
        f"behind; expected one of this process; {cure}"
    )


class Holder(Protocol):
    """What holds a runtime's objects whose end waits for threads, or calls a device."""

    def held(self) -> tuple[object, ...]:
        """Those that it holds now."""


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def leave_to_parent(holder: Holder) -> None:
    """From now on: what it holds is never destroyed in a child of fork(), where that would wait for ever, or fail."""
    _holders.add(holder)


def _leave() -> None:
    for holder in _holders:
        for held in holder.held():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


os.register_at_fork(after_in_child=_leave)
