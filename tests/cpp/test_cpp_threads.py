"""The processors that C++ may use, counted as Python does. Affinity, and control groups of every kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from engine.threads import cpu_quota, default_threads
from tests.cpp import building, capi
from tests.cpp.capi import Library, open_c
from tests.native_models import NEEDS_NATIVE
from tests.unit.test_threads import CASES, machine

AFFINITIES = (1, 2, 64)


def test_control_groups(tmp_path: Path) -> None:
    program = building.build("quotas", source=Path(__file__).parent / "quotas") / "quotas"
    questions, wanted = [], []
    for index, (cgroup, mountinfo, files, _) in enumerate(CASES.values()):
        root = machine(tmp_path / str(index), cgroup, mountinfo, files)
        for affinity in AFFINITIES:
            questions += [str(root), str(affinity)]
            wanted.append((cpu_quota(root), default_threads(root, affinity)))
    questions += [str(tmp_path / "no such folder"), "3"]
    wanted.append((float("inf"), 3))
    answers = [line.split() for line in building.run([program, *questions]).splitlines()]
    assert [(float(quota), int(threads)) for quota, threads in answers] == wanted


@NEEDS_NATIVE
def test_the_default_of_this_process(library: Library, native_bundle: Callable[..., Path]) -> None:
    path = native_bundle("form1")
    allowed = os.sched_getaffinity(0)
    with open_c(library, path, threads=capi.UNSET) as sampler:
        assert sampler.info.threads == default_threads()
    try:
        os.sched_setaffinity(0, {min(allowed)})
        with open_c(library, path, threads=capi.UNSET) as sampler:
            assert sampler.info.threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
