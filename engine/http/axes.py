"""The principal axes of the drawn input: the ways in which samples of a bundle's fitted prior differ most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.bundle.prior import read_prior
from engine.bundle.reader import Bundle

AXES = 6


def principal_axes(bundle: Bundle) -> npt.NDArray[np.float32]:
    """The first principal axes of the prior, float32 [<= AXES, D], each as long as its standard deviation; none without a
    prior: N(0, I) has no axes of its own.

    The covariance of a mixture is that of its means and the mean of its covariances.
    """
    prior = read_prior(bundle)
    if prior is None:
        return np.empty((0, 0), np.float32)
    weights = prior.weights.astype(np.float64) / prior.weights.sum(dtype=np.float64)
    scales, offsets = prior.scale_tril.astype(np.float64), prior.means - weights @ prior.means
    covariance = np.einsum("k,kij,klj->il", weights, scales, scales) + (weights[:, None] * offsets).T @ offsets
    values, vectors = np.linalg.eigh(covariance)  # rising
    axes = (vectors * np.sqrt(np.maximum(values, 0))).T[::-1][:AXES]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
    return np.ascontiguousarray(axes * signs, np.float32)  # an axis has two ends: its largest number is positive
