"""Precision and recall of a set of images on features (Kynkäänniemi et al. 2019, arXiv 1904.06991).

Around every feature vector of a set lies a ball that reaches its k-th nearest neighbour in that set; together the balls
are an estimate of where the set has its mass. Precision is the share of generated images within that of the real ones,
recall the share of real images within that of the generated ones. Both sets should be of one size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError

F64 = npt.NDArray[np.float64]
K = 5
BLOCK = 512  # rows of distances at a time


class PrecisionRecall(NamedTuple):
    """Both from 0 to 1."""

    precision: float
    recall: float


def precision_recall(real: npt.ArrayLike, generated: npt.ArrayLike, k: int = K) -> PrecisionRecall:
    """Of features [N, D] and [M, D], both of more than k images."""
    a, b = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) <= k:
        raise ArgumentError(
            f"features: found {list(a.shape)} and {list(b.shape)}, expected [N, D] and [M, D] of more than {k} images"
        )
    return PrecisionRecall(_within(b, a, k), _within(a, b, k))


def _within(points: F64, of: F64, k: int) -> float:
    """The share of points that lie in a ball of the set."""
    radii = np.concatenate([np.partition(block, k, axis=1)[:, k] for block in _distances(of, of)])  # 0 is the point itself
    inside = [(block <= radii).any(axis=1) for block in _distances(points, of)]
    return float(np.concatenate(inside).mean())


def _distances(a: F64, b: F64) -> list[F64]:
    """Squared distances of all of a to all of b, BLOCK rows at a time."""
    squares = np.square(b).sum(axis=1)
    parts = (a[begin : begin + BLOCK] for begin in range(0, len(a), BLOCK))
    return [np.maximum(0.0, np.square(part).sum(axis=1)[:, None] + squares - 2.0 * part @ b.T) for part in parts]
