"""The number of threads that this process may use: by affinity and the container's CPU quota, not by what the host has."""

from __future__ import annotations

import math
import operator
import os
from pathlib import Path
from typing import SupportsIndex

from engine.errors import ArgumentError

_ROOT = Path("/")


def resolve_threads(threads: SupportsIndex | None) -> int:
    """The thread count to use: `default_threads()` for None, else the count asked for, checked.

    ArgumentError for anything but an integer of 1 up to four times the machine's processors (at least 16).
    """
    if threads is None:
        return default_threads()
    most = max(16, 4 * (os.cpu_count() or 1))
    try:
        count = None if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = None
    if count is None or not 1 <= count <= most:
        raise ArgumentError(
            f"threads: found {threads!r}, expected an integer in 1..{most} (this machine has {os.cpu_count()} "
            f"processors) or None; None takes the {default_threads()} that affinity and container allow"
        )
    return count


def default_threads(root: Path = _ROOT, affinity: int | None = None) -> int:
    """min(affinity, CPU quota of the control group and all above it), at least 1.

    A quota of 1.5 processors counts as 1: a second thread would be stopped for half of each period, and the others
    wait for it at every layer's end. root: where proc and sys are looked for.  affinity: None asks the system.
    """
    allowed = _affinity() if affinity is None else affinity
    return max(1, math.floor(min(allowed, cpu_quota(root))))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = _ROOT) -> float:
    """The smallest CPU quota, in processors, over this process's control groups (v1 and v2); inf without one."""
    quotas = [math.inf]
    for version, mount, inside in _control_groups(root):
        folder = mount
        quotas.append(_quota(folder, version))
        for part in inside.parts:
            folder = folder / part
            quotas.append(_quota(folder, version))
    return min(quotas)


def _control_groups(root: Path) -> list[tuple[int, Path, Path]]:
    """(version, mount point, path of this process inside it) of each hierarchy that can limit the processor."""
    groups = _groups_of_this_process(_read(root / "proc/self/cgroup"))
    found = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if not separator or len(fields) < 5 or len(kind) < 3:
            continue
        version = {"cgroup": 1, "cgroup2": 2}.get(kind[0])
        if version is None or version not in groups or (version == 1 and "cpu" not in kind[2].split(",")):
            continue
        mount = root / _unescape(fields[4]).lstrip("/")
        found.append((version, mount, _inside(groups[version], _unescape(fields[3]))))
    return found


def _groups_of_this_process(text: str) -> dict[int, str]:
    """{1: the cpu controller's group, 2: the unified group} from lines `id:controllers:path`."""
    groups = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and (parts[0], parts[1]) == ("0", ""):
            groups[2] = parts[2]
        elif len(parts) == 3 and "cpu" in parts[1].split(","):
            groups[1] = parts[2]
    return groups


def _inside(group: str, mounted: str) -> Path:
    """The group's path below a mount that shows the subtree `mounted`; empty when it lies elsewhere (a namespace)."""
    try:
        inside = Path(group).relative_to(mounted)
    except ValueError:
        return Path()
    return Path() if ".." in inside.parts else inside


def _quota(folder: Path, version: int) -> float:
    if version == 2:
        text = _read(folder / "cpu.max").split()  # "max 100000" or "150000 100000"
    else:
        text = [*_read(folder / "cpu.cfs_quota_us").split(), *_read(folder / "cpu.cfs_period_us").split()]
    if len(text) != 2 or not all(part.isascii() and part.isdigit() for part in text) or int(text[1]) == 0:
        return math.inf  # no limit is written "max" (v2) or -1 (v1)
    return int(text[0]) / int(text[1])


def _read(path: Path) -> str:
    """A small file's text; empty where there is none to read (another system, another cgroup version)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _unescape(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
