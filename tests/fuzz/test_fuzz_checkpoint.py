"""Seeded mutations of checkpoints only ever bring out our own errors, and never a crash.

In a child process, so that a crash of a native reader is an exit code. More seeds: see fuzz_checkpoint.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: str) -> tuple[dict[str, int], str]:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_checkpoint", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_mutated_checkpoints_are_read_or_refused() -> None:
    counts, _ = fuzz("--count", "40")
    assert sum(counts.values()) == 40
    assert counts["content refused"] >= 6
    assert counts["bytes refused"] >= 6


def test_a_seed_replays_alone() -> None:
    counts, shown = fuzz("--replay", "4")
    assert sum(counts.values()) == 1
    assert (counts, shown) == fuzz("--replay", "4")
