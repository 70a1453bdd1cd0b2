"""Seeded mutations of manifest and graphs, which only ever bring out our own errors and never a crash.

In a child process, so that a crash of a native parser is an exit code. More seeds: see fuzz_bundle.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: str) -> tuple[dict[str, int], str]:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_bundle", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_mutated_manifests_are_opened_or_refused() -> None:
    counts, _ = fuzz("--target", "manifest", "--count", "1000")
    assert counts["refused"] > 600
    assert sum(counts.values()) == 1000


def test_mutated_graphs_run_or_are_refused() -> None:
    counts, _ = fuzz("--target", "onnx", "--count", "40")
    assert sum(counts.values()) == 40
    assert any("refused" in outcome for outcome in counts)


@pytest.mark.parametrize("seed", [3, 17])
def test_a_seed_replays_alone(seed: int) -> None:
    counts, shown = fuzz("--replay", str(seed))
    again, shown_again = fuzz("--replay", str(seed))
    assert sum(counts.values()) == 1
    assert (counts, shown) == (again, shown_again)
    assert shown
