"""Seeded mutations of a bundle: C++ answers as Python does, and never crashes.

In child processes, so that a crash is an exit code. More seeds: see fuzz_cpp_bundle.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernels.build import find_compiler
from tests.cpp.building import LIBRARY, ROOT, run
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE


def fuzz(library: Path, bundle: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[dict[str, int], str]:
    command = [sys.executable, "-m", "tests.cpp.fuzz_cpp_bundle", str(library), str(bundle), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})}, check=False
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-3000:]}"
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts, done.stderr


@pytest.mark.parametrize("model", ["form1", "form1_zcond", "uncond"])
def test_mutated_bundles_get_the_same_answer(cpp_library: Path, native_bundle: Callable[..., Path], model: str) -> None:
    counts, _ = fuzz(cpp_library, native_bundle(model), "--count", "120")
    same = counts.pop("same place")
    assert sum(counts.values()) == 120
    assert same > 0.9 * 120, "several faults at once may be found in another order, one alone may not"
    assert sum(number for name, number in counts.items() if name.endswith("opened")) > 4
    assert sum(number for name, number in counts.items() if name.endswith("refused")) > 70


def test_a_seed_replays_alone(cpp_library: Path, native_bundle: Callable[..., Path]) -> None:
    counts, shown = fuzz(cpp_library, native_bundle("uncond"), "--replay", "3")
    assert sum(counts.values()) in (1, 2)
    assert "Python: " in shown
    assert "C++: " in shown


def sanitizer_libraries() -> str:
    """What a Python without sanitizers preloads before it loads a library with them."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        path = Path(run([*find_compiler(), f"-print-file-name={name}"]).strip())
        if not path.is_absolute():
            pytest.skip(f"the compiler of this machine has no {name} to preload")
        found.append(str(path.resolve()))
    return ":".join(found)


def test_mutated_bundles_under_the_sanitizers(cpp_sanitized: Path, native_bundle: Callable[..., Path]) -> None:
    # Leaks are looked for by test_cpp_hardships.py: what Python itself never gives back would be counted here.
    env = {"LD_PRELOAD": sanitizer_libraries(), "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    counts, _ = fuzz(cpp_sanitized / "diffusevae" / LIBRARY, native_bundle("form1"), "--count", "80", env=env)
    assert sum(counts.values()) > 80
