"""The default thread count follows affinity and container limits; a senseless count is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from engine.errors import ArgumentError
from engine.processor import read_processor, this_processor
from engine.threads import cpu_quota, default_threads, resolve_threads

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def machine(root: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    """A root folder with these control groups; file paths are below sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CASES = {
    "no limit": ("0::/\n", V2, {"cpu.max": "max 100000\n"}, math.inf),
    "own group": ("0::/app\n", V2, {"app/cpu.max": "200000 100000\n"}, 2),
    "parent is tighter": ("0::/pod/app\n", V2, {"pod/app/cpu.max": "max 100000", "pod/cpu.max": "300000 100000"}, 3),
    "child is tighter": ("0::/pod/app\n", V2, {"pod/app/cpu.max": "50000 100000", "pod/cpu.max": "300000 100000"}, 0.5),
    "top of a namespace": ("0::/\n", V2, {"cpu.max": "150000 100000"}, 1.5),
    "mounted subtree": ("0::/docker/abc/job\n", V2.replace(" / ", " /docker/abc ", 1), {"job/cpu.max": "400000 100000"}, 4),
    "elsewhere": ("0::/../../other\n", V2, {"cpu.max": "500000 100000"}, 5),
    "unrelated mount": ("0::/docker/abc\n", V2.replace(" / ", " /docker/xyz ", 1), {"cpu.max": "500000 100000"}, 5),
    "v1": (
        "4:cpu,cpuacct:/app\n0::/\n", V1,
        {"cpu,cpuacct/app/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/app/cpu.cfs_period_us": "100000\n"}, 2.5,
    ),
    "v1 unlimited": (
        "4:cpu,cpuacct:/\n", V1,
        {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, math.inf,
    ),
    "v1 beside v2": (
        "4:cpu,cpuacct:/a\n0::/b\n", V1 + V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "600000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
         "unified/b/cpu.max": "700000 100000"}, 6,
    ),
    "a space in the mount": ("0::/\n", V2.replace("cgroup ", "cgroup/my\\040cg ", 1), {"my cg/cpu.max": "1 2"}, 0.5),
    "nonsense": ("0::\nx\n::::\n", "a - b\n\n- - -\n" + V2, {"cpu.max": "many of\nthem"}, math.inf),
    "period zero": ("0::/\n", V2, {"cpu.max": "100000 0"}, math.inf),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_quota_is_the_tightest_on_the_way_up(tmp_path: Path, case: str) -> None:
    cgroup, mountinfo, files, expected = CASES[case]
    root = machine(tmp_path, cgroup, mountinfo, files)
    assert cpu_quota(root) == expected
    allowed = 64 if expected == math.inf else max(1, math.floor(expected))
    assert default_threads(root, affinity=64) == allowed
    assert default_threads(root, affinity=1) == 1


def test_a_machine_without_control_groups_goes_by_affinity(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf
    assert default_threads(tmp_path, affinity=7) == 7


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_affinity_of_this_process_counts(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert default_threads(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert default_threads(tmp_path) == len(before)


def test_asked_for_counts_are_checked() -> None:
    assert resolve_threads(None) == default_threads() >= 1
    assert resolve_threads(3) == 3
    for wrong in (0, -1, 10**6, True, 1.5, "2", [1]):
        with pytest.raises(ArgumentError, match=r"threads: found .*, expected an integer in 1\.\.\d+ .*or None"):
            resolve_threads(wrong)  # type: ignore[arg-type]


CPUINFO = "processor\t: {0}\nmodel name\t: Example CPU\nflags\t\t: fpu sse4_2 avx2 {1}\n\n"


@pytest.mark.parametrize(
    ("flags", "bf16", "amx"), [("", False, False), ("avx512f avx512_bf16", True, False), ("amx_tile amx_bf16", True, True)]
)
def test_features_are_read_from_cpuinfo(tmp_path: Path, flags: str, bf16: bool, amx: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO.format(0, flags) + CPUINFO.format(1, flags))
    found = read_processor(file)
    assert (found.name, found.bf16, found.amx_bf16) == ("Example CPU", bf16, amx)
    assert found.features == {"sse4_2", "avx2", *flags.split()}
    assert "avx2" in str(found)


def test_a_feature_that_one_core_lacks_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPUINFO.format(0, "amx_bf16") + CPUINFO.format(1, ""))
    assert not read_processor(file).bf16


def test_without_cpuinfo_nothing_is_claimed(tmp_path: Path) -> None:
    found = read_processor(tmp_path / "none")
    assert found.features == frozenset()
    assert not found.bf16
    assert "features unknown" in str(found)
    assert this_processor() is this_processor()
