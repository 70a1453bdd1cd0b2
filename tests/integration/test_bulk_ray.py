"""A bulk job on a real Ray cluster: that of a single process, also when a worker is killed in the middle."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.bulk.job import describe
from tests.bulk_jobs import MEANS, opened, run, whole_hash
from tests.samplers import ANY_BACKEND, bundle

ROOT = Path(__file__).parents[2]
N, SHARD = 60, 3
JOB = {"seed": 2**64 - 9, "shard_size": SHARD, "batch": 1, "steps": 1000, "method": "ddpm", "format": "tar"}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in JOB.items()]
PATIENCE = 120  # seconds, on a busy machine
LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="this system has no /proc to look into"),
]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short name: Ray's sockets lie below TMPDIR, and their paths have a limit."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def start(out: Path, scratch: Path, *more: str, kind: str = "form1") -> subprocess.Popen[str]:
    """The command with two workers of one thread each, on a cluster of its own."""
    machine = ["--backend", ANY_BACKEND, "--precision", "f32", "--threads", "1"]
    command = [sys.executable, "-m", "engine", "sample", str(bundle(kind)), "--n", str(N), *OPTIONS, *machine]
    command += ["--out", str(out), "--ray", "--workers", "2", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def below(pid: int) -> dict[int, str]:
    """{pid: command line} of every process below one."""
    children: dict[int, list[int]] = {}
    names = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(int(folder.name))
    found, ahead = {}, [pid]
    while ahead:
        for child in children.get(ahead.pop(), []):
            found[child] = names[child]
            ahead.append(child)
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which these processes listen."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except FileNotFoundError:
                continue  # closed meanwhile
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in sockets}


def wait_for(true: Callable[[], object], child: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.01)


def ends(pids: set[int]) -> bool:
    """Whether these processes end soon."""
    give_up = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > give_up:
            return False
        time.sleep(0.05)
    return True


def finished(out: Path) -> int:
    return len(list(out.glob("*.sha256")))


def test_a_worker_killed_in_mid_run(tmp_path: Path, scratch: Path) -> None:
    out = tmp_path / "ray"
    child = start(out, scratch, "--json")
    wait_for(lambda: finished(out) >= 3, child)
    processes = below(child.pid)
    workers = [pid for pid, name in processes.items() if name.startswith("ray::Actor")]
    assert len(workers) == 2, processes
    # Those called ray:: have written their names over their environment.
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid, name in processes.items() if "ray::" not in name]
    os.kill(workers[0], signal.SIGKILL)
    at_death = finished(out)
    addresses = listening({child.pid, *processes})
    stdout, stderr = child.communicate(timeout=PATIENCE)

    assert child.returncode == 0, stderr
    assert at_death < N // SHARD - 1, "it must have been in the middle"
    assert addresses, "Ray's processes listen somewhere"
    assert addresses <= LOOPBACK, "nothing can be reached from outside"
    dashboards = [name for name in processes.values() if "dashboard/dashboard.py" in name]
    assert all("--disable-frontend" in name for name in dashboards), "no dashboard"
    assert environments
    assert all(b"RAY_USAGE_STATS_ENABLED=0" in environment for environment in environments), "no usage statistics"
    assert stderr.count("note: a worker died") == 1, stderr
    report = json.loads(stdout)
    assert (report["shards_made"], report["images_made"]) == (N // SHARD, N)

    seen = []
    for shard in report["shards"]:
        with tarfile.open(out / shard["file"]) as archive:
            labels = [json.load(archive.extractfile(name)) for name in archive.getnames() if name.endswith(".json")]
            seen += [(label["index"], label["seed"]) for label in labels]
    assert seen == [(i, (2**64 - 9 + i) % 2**64) for i in range(N)], "no sample lost or doubled"
    alone = run(tmp_path / "alone", describe(opened(), N, **JOB), MEANS).manifest
    assert whole_hash(out) == report["sha256"] == alone["sha256"]
    assert ends(set(processes)), "nothing of the cluster is left running"
    assert not [*scratch.glob("dv-*"), *scratch.glob("diffusevae-*")], "nor lying about"


def test_ctrl_c_and_the_rest_without_ray(tmp_path: Path, scratch: Path) -> None:
    child = start(tmp_path, scratch)
    wait_for(lambda: finished(tmp_path) >= 2, child)
    processes = set(below(child.pid))
    child.send_signal(signal.SIGINT)
    stderr = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 130, stderr
    assert "keeps the finished shards, and the same command goes on from there" in stderr
    assert ends(processes)
    kept = finished(tmp_path)
    assert 2 <= kept < N // SHARD
    result = run(tmp_path, describe(opened(), N, **JOB), MEANS)
    assert result.shards_made == N // SHARD - kept
    assert len(whole_hash(tmp_path)) == 64


def test_an_error_of_the_engine_is_not_tried_again(tmp_path: Path, scratch: Path) -> None:
    child = start(tmp_path, scratch, kind="nan")
    stderr = child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 1
    assert re.search(r"a worker, at shard-0000\d\.tar, seeds \d+ to \d+: found NumericsError: The graph 'denoiser'", stderr)
    assert "it would fail again, so the run ends here" in stderr
    assert "Traceback" not in stderr
    assert finished(tmp_path) == 0
