"""The implementation of the kernels that a test runs on."""

from __future__ import annotations

import numpy as np
import pytest

from engine import kernels
from engine.kernels import fallback, loader

NATIVE = kernels.implementation()["name"] == "native"
# Both ends of each word of a seed.
SEEDS = np.array([0, 2**32 - 1, 2**63, 2**64 - 1], np.uint64)


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the public functions run on "native" or "numpy" for the rest of a test."""
    if name == "native" and not NATIVE:
        pytest.skip("the compiled kernels were not built (DIFFUSEVAE_KERNELS=numpy)")
    chosen = loader.NativeKernels() if name == "native" else fallback.NumpyKernels("test")
    monkeypatch.setattr(kernels, "_kernels", chosen)
