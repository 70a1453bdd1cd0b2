"""Processes that a benchmark starts: they end with it, however it ends, and so do theirs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import children

ROOT = Path(__file__).parents[2]
LINE = "import subprocess, sys, time\n"
# Prints its own number and that of a child of its own, and goes on for a minute.
FAMILY = LINE + "a = subprocess.Popen(['sleep', '60']); import os; print(os.getpid(), a.pid, flush=True); time.sleep(60)"
BENCH = LINE + "from benchmarks import children; children.run([sys.executable, '-c', {family!r}])"


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    limit = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look for processes in")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_benchmark_that_is_ended_leaves_nothing_running(how: signal.Signals) -> None:
    bench = subprocess.Popen(
        [sys.executable, "-c", BENCH.format(family=FAMILY)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert bench.stdout is not None
    pids = [int(word) for word in bench.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    bench.send_signal(how)
    bench.wait(10)
    assert gone(pids), "the build and its own child go on"
    bench.stdout.close()


def test_a_command_that_ends_by_itself_gives_its_code_and_what_it_printed() -> None:
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = children.run([sys.executable, "-c", script], capture=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_child_that_does_not_listen_is_ended_with_its_own(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY
    with children.Child([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as child:
        assert child.process.stdout is not None
        pids = [int(word) for word in child.process.stdout.readline().split()]
        assert child.end(patience=0.05) == -signal.SIGKILL
        child.process.stdout.close()
    assert gone(pids)


def test_benchmarks_start_processes_in_no_other_way() -> None:
    pattern = re.compile(r"subprocess\.(run|Popen|call|check_\w+)\(|os\.(system|spawn|popen)")
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    assert len(files) > 20
    found = [str(path) for path in files if path.name != "children.py" and pattern.search(path.read_text())]
    assert found == []
