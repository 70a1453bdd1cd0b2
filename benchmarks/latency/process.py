"""A script in a process of its own that answers what the benchmark asks, through a pipe."""

from __future__ import annotations

import os
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from benchmarks import children
from benchmarks.machine import BenchmarkError


class PipedProcess:
    """One end of the pipe; the script is given the number of the other, and the arguments.

    It answers a message with ("ok", value), or with another word and what went wrong. `who` and `cure` are for the errors.
    """

    def __init__(self, script: Path, *arguments: str, threads: int, who: str, cure: str, **environment: str) -> None:
        self._who, self._cure = who, cure
        self._pipe, theirs = Pipe()
        self._child = children.Child(
            [sys.executable, str(script), str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **environment, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"},
            stdout=2,  # what libraries print must not mix with the benchmark's own output
        )
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of what the script serves and wait for its answer."""
        return self.exchange((method, arguments))

    def exchange(self, message: Any) -> Any:
        """Send a message and wait for the answer; BenchmarkError when the process ended or could not do it."""
        try:
            self._pipe.send(message)
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            code = self._child.end(patience=10)
            raise BenchmarkError(
                f"{self._who}: found that its process ended (exit code {code}), expected an answer; "
                f"look at its messages above, and at the free memory"
            ) from error
        if kind != "ok":
            raise BenchmarkError(f"{self._who}: found {value}; expected an answer; {self._cure}")
        return value

    def close(self) -> None:
        """End the process; harmless when it has ended already."""
        self._pipe.close()  # it reads the end of the pipe, and leaves
        self._child.end(patience=10)
