"""Seeded mutations of native programs and weights: our own errors only, and never a crash.

In a child process, so that a crash of the library is an exit code. More seeds: see fuzz_native.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE
ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: str) -> tuple[dict[str, int], str]:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_native", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_mutated_programs_run_or_are_refused() -> None:
    counts, _ = fuzz("--count", "400")
    assert sum(counts.values()) == 400
    assert set(counts) <= {"ran", "BundleError"}
    assert counts["BundleError"] > 200


def test_a_seed_replays_alone() -> None:
    counts, shown = fuzz("--replay", "3")
    assert sum(counts.values()) == 1
    assert "diffusevae-native" in shown
