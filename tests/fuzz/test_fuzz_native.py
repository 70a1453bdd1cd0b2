"""Seeded mutations of native programs and weights: our own errors only, and never a crash.

In a child process, so that a crash of the library is an exit code. More seeds: see fuzz_native.py.
"""

from __future__ import annotations

from tests.fuzz.seeds import in_child
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE


def test_mutated_programs_run_or_are_refused() -> None:
    counts, _ = in_child("fuzz_native", "--count", "400")
    assert sum(counts.values()) == 400
    assert set(counts) <= {"ran", "BundleError"}
    assert counts["BundleError"] > 200


def test_a_seed_replays_alone() -> None:
    counts, shown = in_child("fuzz_native", "--replay", "3")
    assert sum(counts.values()) == 1
    assert "diffusevae-native" in shown
