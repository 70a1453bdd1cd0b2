"""Processes that end with the benchmark which started them, however it ends: a group each, and a guard beside it.

A benchmark is interrupted, times out in a CI job, or is killed outright. What it started (a build that calibrates,
a contestant that holds every processor) must not go on, and neither must the children of those. The guard is a shell that
waits on a pipe. The system closes that pipe when the benchmark is gone, and the guard ends the group.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

# `kill -TERM -- -N` is refused by dash; this form is POSIX's own.
GUARD = 'read _; kill -s TERM -- "-$1" 2>/dev/null; sleep 1; kill -s KILL -- "-$1" 2>/dev/null'


class Child:
    """A running command in a process group of its own; `options` are those of subprocess.Popen."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)
        try:
            guard = ["/bin/sh", "-c", GUARD, "guard", str(self.process.pid)]
            self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)
        except BaseException:
            self._signal(signal.SIGKILL)
            self.process.wait()
            raise

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self, patience: float = 0.0) -> int:
        """Its exit code; what has not ended within `patience` seconds is killed with its whole group."""
        if self._guard.returncode is not None:
            return int(self.process.returncode)  # ended before: its group's number may be another's by now
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
        finally:
            self._signal(signal.SIGKILL)  # also what it left behind
            code = self.process.wait()
            self._guard.kill()
            self._guard.communicate()
        return code

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the group is empty
            os.killpg(self.process.pid, number)


def run(
    command: Sequence[str], *, capture: bool = False, cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run a command to its end, as subprocess.run does; `capture` keeps what it prints."""
    pipe = subprocess.PIPE if capture else None
    with Child(command, stdout=pipe, stderr=pipe, text=True, cwd=cwd, env=env) as child:
        out, err = child.process.communicate()
    return subprocess.CompletedProcess(list(command), child.process.returncode, out, err)
