"""The rules of fork(): runtimes whose threads or devices stay with the process that first used them."""

from __future__ import annotations

import os

from engine.errors import BackendError


class OneProcess:
    """A runtime with state of its whole process, which a child of fork() has no working copy of, nor can make again.

    The process that enters first has it, and so have children that were forked before; later ones are refused.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: int | None = None

    def enter(self) -> None:
        """Say that this process uses it. BackendError where a process did that this one was forked from."""
        if self._process is None:
            self._process = os.getpid()
        if self._process != os.getpid():
            raise forked(self.name, self)


def forked(what: str, runtime: OneProcess | None = None) -> BackendError:
    """The refusal of what was opened before a fork(). runtime: its own where that works in one process only."""
    cure = "open the bundle again here, or start processes by 'spawn'"
    if runtime is not None:
        cure = (
            "open the bundle here with another backend, such as native or onnxruntime, start processes by 'spawn', or fork "
            f"before {runtime.name} is first used"
        )
    return BackendError(
        f"{what}: found that it was opened by the parent of this process, whose threads a fork() leaves behind; expected "
        f"one of this process; {cure}"
    )
