"""Inputs to try a bundle with: what a warm-up or a comparison of backends hands in where a caller would have to choose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest


def example_inputs(manifest: Manifest, free: int | None = None) -> dict[str, Any] | None:
    """As `examples_of`, for a bundle."""
    return examples_of(manifest.inputs, free)


def examples_of(inputs: Iterable[InputSpec], free: int | None = None) -> dict[str, Any] | None:
    """One sample of each input that must be given: zeros, or what is nearest to them in its range.

    free: the size of free dimensions. Without one the answer is None where an input has such a dimension: which sizes the
    network takes is for its user to know.
    """
    needed = [spec for spec in inputs if spec.draw is None]
    if free is None and any(isinstance(size, str) for spec in needed for size in spec.sample):
        return None
    return {spec.name: _example(spec, free or 1) for spec in needed}


def _example(spec: InputSpec, free: int) -> npt.NDArray[Any]:
    low, high = spec.range or (0, 0)
    nearest = min(max(0, low), high)
    if spec.dtype == "int64":
        nearest = int(np.ceil(nearest))
    return np.full([size if isinstance(size, int) else free for size in spec.sample], nearest, spec.dtype)
