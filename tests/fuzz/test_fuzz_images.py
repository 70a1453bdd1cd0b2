"""Damaged pictures become images or our own errors, never a crash, and in bounded time and memory.

In a child process, so that a crash of a native decoder is an exit code. More seeds: see fuzz_images.py.
"""

from __future__ import annotations

from tests.fuzz.seeds import in_child


def test_damaged_pictures_are_read_or_refused() -> None:
    counts, _ = in_child("fuzz_images", "--count", "150")
    assert sum(counts.values()) == 150
    assert counts["whole read"] >= 15
    assert counts["damaged read"] >= 15
    assert counts["damaged refused"] >= 60


def test_a_seed_replays_alone() -> None:
    counts, shown = in_child("fuzz_images", "--replay", "5")
    assert sum(counts.values()) == 1
    assert (counts, shown) == in_child("fuzz_images", "--replay", "5")
