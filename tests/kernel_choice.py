"""The implementation of the kernels that a test runs on."""

from __future__ import annotations

import numpy as np
import pytest

from engine import kernels
from engine.kernels import fallback, loader

COMPILED = kernels.implementation()["name"] == "compiled"
# Both ends of each word of a seed.
SEEDS = np.array([0, 2**32 - 1, 2**63, 2**64 - 1], np.uint64)


def component_words(seeds: np.ndarray) -> np.ndarray:
    """The word of each seed that chooses a component of a prior, uint32 [N]."""
    words = [kernels.philox4x32((0, 0, 0, kernels.STREAM_PRIOR), (seed % 2**32, seed >> 32))[0] for seed in seeds.tolist()]
    return np.array(words, np.uint32)


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the public functions run on "compiled" or "numpy" for the rest of a test."""
    if name == "compiled" and not COMPILED:
        pytest.skip("the compiled kernels were not built (DIFFUSEVAE_KERNELS=numpy)")
    chosen = loader.CompiledKernels() if name == "compiled" else fallback.NumpyKernels("test")
    monkeypatch.setattr(kernels, "_kernels", lambda: chosen)
