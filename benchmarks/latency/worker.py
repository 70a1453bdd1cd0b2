"""A contestant's process: alone in it, answering what the benchmark asks through a pipe.

A process each, because thread pools of several runtimes in one process spin against each other, and because only so peak
memory, load time and the first image belong to one contestant. The benchmark asks one process at a time; the others sleep.

    python benchmarks/latency/worker.py FD        (started by duel.py; FD is its end of the pipe)
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed


@dataclass(frozen=True)
class Start:
    """The first message: who to be, and when (on the system's monotonic clock) this process was started."""

    contestant: Any
    task: Any
    started: float


def peak_rss_mb() -> float:
    """The most memory that this process has held, in MiB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    # Where there is no /proc: this figure may include what the parent held when it started the process.
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def serve(pipe: Connection) -> None:
    """Load what the first message says, then answer (method, arguments) until the pipe closes or None comes."""
    from benchmarks.latency.contestants import RUNNERS
    from engine.errors import EngineError

    start: Start = pipe.recv()
    try:
        runner = RUNNERS[start.contestant.kind](start.contestant, start.task)
        pipe.send(("ok", 1e3 * (time.monotonic() - start.started)))
        while (message := pipe.recv()) is not None:
            method, arguments = message
            answer = peak_rss_mb() if method == "peak_rss_mb" else getattr(runner, method)(*arguments)
            pipe.send(("ok", answer))
    except EOFError:
        return  # the benchmark is gone, and so is the reason to be here
    except (EngineError, RuntimeError, ImportError, OSError, MemoryError) as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    from benchmarks.latency import worker  # messages name this module by its package, not as __main__

    worker.serve(Connection(int(sys.argv[1])))
