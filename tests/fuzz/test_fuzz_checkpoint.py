"""Seeded mutations of checkpoints only ever bring out our own errors, and never a crash.

In a child process, so that a crash of a native reader is an exit code. More seeds: see fuzz_checkpoint.py.
"""

from __future__ import annotations

from tests.fuzz.seeds import in_child


def test_mutated_checkpoints_are_read_or_refused() -> None:
    counts, _ = in_child("fuzz_checkpoint", "--count", "40")
    assert sum(counts.values()) == 40
    assert counts["content refused"] >= 6
    assert counts["bytes refused"] >= 6


def test_a_seed_replays_alone() -> None:
    counts, shown = in_child("fuzz_checkpoint", "--replay", "4")
    assert sum(counts.values()) == 1
    assert (counts, shown) == in_child("fuzz_checkpoint", "--replay", "4")
