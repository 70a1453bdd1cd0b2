"""The engine's command line in a process of its own, measured by that process when it ends."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import children
from benchmarks.machine import BenchmarkError

ROOT = Path(__file__).resolve().parents[2]
CALL = "from benchmarks.building.measured import serve; serve()"
KIB = 1024  # of which Linux counts resident memory in


@dataclass(frozen=True)
class Cost:
    """Seconds of the clock and of all processors, and the most memory that was resident: GiB, mapped files included."""

    wall_s: float
    cpu_s: float
    peak_gib: float


def measure(arguments: Sequence[str], result: Path) -> Cost:
    """Run `diffusevae ARGUMENTS`; BenchmarkError where it fails. result: a file for what it cost."""
    done = children.run([sys.executable, "-c", CALL, str(result), *arguments], cwd=ROOT)
    if done.returncode != 0:
        raise BenchmarkError(
            f"diffusevae {arguments[0]}: found exit code {done.returncode} (its message is above), expected 0; look at the "
            "free memory and disk first"
        )
    return Cost(**json.loads(result.read_text()))


def serve() -> None:
    """What runs in the process: sys.argv has the file for the result and the arguments."""
    from engine.cli.main import main

    result = Path(sys.argv[1])
    sys.argv[:] = ["diffusevae", *sys.argv[2:]]
    begin = time.perf_counter()
    try:
        main()
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cost = {"wall_s": time.perf_counter() - begin, "cpu_s": used.ru_utime + used.ru_stime}
        result.write_text(json.dumps({**cost, "peak_gib": used.ru_maxrss * KIB / 2**30}))
