"""The distance between two sets of features: the Fréchet distance of the Gaussians fitted to them, in float64.

    FD = |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr sqrt(S_a^1/2 S_b S_a^1/2)

(Dowson and Landau 1982; Heusel et al. 2017 use it on Inception features and call it FID.) The estimate is biased upwards,
the more the fewer images there are: only distances over the same two counts may be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of `count` feature vectors."""

    mean: F64
    covariance: F64
    count: int

    @cached_property
    def root(self) -> F64:
        """The symmetric square root of the covariance; kept, because a reference is compared with many sets."""
        values, vectors = np.linalg.eigh(self.covariance)
        # Fewer images than features leave eigenvalues of 0, which rounding may push below it.
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def moments(features: npt.ArrayLike) -> Moments:
    """Fit a Gaussian to features [N, D], N at least 2; covariance over N - 1."""
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise ArgumentError(
            f"features: found the shape {list(array.shape)}, expected [N, D] with N of at least 2; sample more images"
        )
    if not np.isfinite(array).all():
        raise ArgumentError("features: found NaN or infinity, expected finite numbers; look at the images that gave them")
    mean = array.mean(axis=0)
    centred = array - mean
    return Moments(mean, centred.T @ centred / (len(array) - 1), len(array))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance defined above; `a` is the one whose root is computed (and kept)."""
    if a.mean.shape != b.mean.shape:
        raise ArgumentError(
            f"features: found {len(a.mean)} and {len(b.mean)} numbers an image, expected the same; "
            f"use one extractor for both"
        )
    product = a.root @ b.covariance @ a.root
    # The product is symmetric but for rounding; eigvalsh reads one half of it.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(product), 0.0)).sum()
    gap = float(np.square(a.mean - b.mean).sum())
    return max(0.0, gap + float(np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross))
