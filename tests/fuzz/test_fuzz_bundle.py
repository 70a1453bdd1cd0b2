"""Seeded mutations of manifest and graphs, which only ever bring out our own errors and never a crash.

In a child process, so that a crash of a native parser is an exit code. More seeds: see fuzz_bundle.py.
"""

from __future__ import annotations

import pytest

from tests.fuzz.seeds import in_child


def test_mutated_manifests_are_opened_or_refused() -> None:
    counts, _ = in_child("fuzz_bundle", "--target", "manifest", "--count", "1000")
    assert counts["refused"] > 600
    assert sum(counts.values()) == 1000


def test_mutated_graphs_run_or_are_refused() -> None:
    counts, _ = in_child("fuzz_bundle", "--target", "onnx", "--count", "40")
    assert sum(counts.values()) == 40
    assert any("refused" in outcome for outcome in counts)


@pytest.mark.parametrize("seed", [3, 17])
def test_a_seed_replays_alone(seed: int) -> None:
    counts, shown = in_child("fuzz_bundle", "--replay", str(seed))
    again, shown_again = in_child("fuzz_bundle", "--replay", str(seed))
    assert sum(counts.values()) == 1
    assert (counts, shown) == (again, shown_again)
    assert shown
