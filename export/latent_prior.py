"""Ex-post density estimation: a Gaussian mixture fitted to what a model's encoder makes of its training images.

DiffuseVAE (https://arxiv.org/abs/2201.00308) draws z from a mixture that was fitted, after training, to the aggregated
posterior of the training images, where N(0, I) puts latents that the decoder has never seen. Reading is
`engine.bundle.prior`, with the same checks as in a bundle.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from engine.bundle.files import MAX_GRAPH_BYTES
from engine.bundle.prior import FIT, Prior, check_width, checked_prior, parse_prior
from engine.commands import install_extra
from engine.errors import ArgumentError, ExportError
from export.families.base import Model

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ticks = Callable[[Iterable[int]], Iterable[int]]  # wraps the rounds of a fit, to show how far it is

TOLERANCE = 1e-3  # gain in mean log-likelihood, in nats, below which the fit has converged
PRIOR_FILE = "latent_prior.safetensors"  # in a bundle
FLOOR = 1e-6  # added to the variances, so that no component collapses onto a few latents
ROUNDS, ITERATIONS = 20, 10  # of expectation-maximisation at most, and within each round


def sample_posterior(mu: npt.ArrayLike, logvar: npt.ArrayLike, seed: int, draws: int = 1) -> F64:
    """z = mu + sigma * eps of each image's posterior, float64 [N * draws, D]; ArgumentError for what are no posteriors."""
    means, variances = np.asarray(mu, np.float64), np.asarray(logvar, np.float64)
    if means.ndim != 2 or means.shape != variances.shape or not means.size:
        raise ArgumentError(f"found mu {list(means.shape)} and logvar {list(variances.shape)}, expected [N, D] of both")
    if not (np.isfinite(means).all() and np.isfinite(variances).all()):
        raise ArgumentError("found NaN or infinity in mu or logvar, expected finite posteriors; check the images")
    eps = np.random.default_rng(seed).standard_normal((draws, *means.shape))
    return (means + np.exp(variances / 2) * eps).reshape(-1, means.shape[1])


def fit(
    mu: npt.ArrayLike, logvar: npt.ArrayLike, components: int, seed: int = 0, draws: int = 1, ticks: Ticks = iter
) -> Prior:
    """A mixture of `components` Gaussians with full covariances, fitted to `draws` z of each posterior.

    A component's covariance has D (D + 1) / 2 values: with too few z it fits their noise, which more draws prevent. The
    same arguments give the same mixture on the same machine. Fitting ends when an iteration gains less than TOLERANCE, or
    after ROUNDS * ITERATIONS. ArgumentError for too many components, ExportError when scikit-learn is missing.
    """
    z = sample_posterior(mu, logvar, seed, draws)
    images = len(z) // draws
    if not 1 <= components <= images // 2:
        raise ArgumentError(
            f"--components: found {components} for {images} images, expected 1..{images // 2}, two images each at least; "
            "use fewer components or more images"
        )
    weights, means, covariances = _expectation_maximisation(z, components, seed, ticks)
    total = weights.sum()
    found = (weights / total, means, np.linalg.cholesky(covariances))
    weights32, means32, factors32 = (np.ascontiguousarray(array, np.float32) for array in found)
    return checked_prior(weights32, means32, factors32, "the fitted mixture")


def _expectation_maximisation(z: F64, components: int, seed: int, ticks: Ticks) -> tuple[F64, F64, F64]:
    """Weights, means and covariances, in rounds of a few iterations so that progress can be shown."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise ExportError(
            "found no scikit-learn, expected it for fitting a prior; install it with: "
            f"{install_extra('export')}"
        ) from error
    model = GaussianMixture(
        components, tol=TOLERANCE, reg_covar=FLOOR, max_iter=ITERATIONS, random_state=seed, warm_start=True
    )
    for _ in ticks(range(ROUNDS)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a round is short: whether it was the last is asked below
            model.fit(z)
        if model.converged_:
            break
    return model.weights_, model.means_, model.covariances_


def log_likelihood(prior: Prior, z: npt.ArrayLike) -> float:
    """The mean log-density of latents [N, D] under the mixture, in nats a latent."""
    points = np.asarray(z, np.float64)
    constant = -0.5 * prior.width * np.log(2 * np.pi)
    logs = np.empty((prior.components, len(points)))
    for k, factor in enumerate(prior.scale_tril.astype(np.float64)):
        whitened = np.linalg.solve(factor, (points - prior.means[k]).T)
        logs[k] = np.log(prior.weights[k]) + constant - np.log(np.diagonal(factor)).sum() - 0.5 * (whitened**2).sum(axis=0)
    return float(np.logaddexp.reduce(logs, axis=0).mean())


def standard_prior(width: int) -> Prior:
    """N(0, I) as a mixture of one, to compare with."""
    return Prior(np.ones(1, np.float32), np.zeros((1, width), np.float32), np.eye(width, dtype=np.float32)[None])


@dataclass(frozen=True)
class FittedPrior:
    """A fitted mixture, the bytes that hold it, and the SHA-256 of the checkpoint whose VAE it was fitted to, if known."""

    path: Path
    prior: Prior
    data: bytes
    checkpoint_sha256: str | None

    def entry(self, name: str) -> dict[str, Any]:
        """Its entry in a manifest as the density of the input `name`, without size and hash."""
        return {"input": name, "kind": "gaussian_mixture", "components": self.prior.components, "file": PRIOR_FILE}


def size_of_prior(components: int, width: int) -> int:
    """The bytes of a prior's file, but for its header."""
    return 4 * components * (1 + width + width**2)  # float32: weight, mean and triangle of each


def to_bytes(prior: Prior, checkpoint_sha256: str | None = None) -> bytes:
    """The content of latent_prior.safetensors."""
    tensors = {"weights": prior.weights, "means": prior.means, "scale_tril": prior.scale_tril}
    return save(tensors, {"checkpoint_sha256": checkpoint_sha256} if checkpoint_sha256 else None)


def write_prior(path: Path, prior: Prior, checkpoint_sha256: str | None = None) -> None:
    """Write a file that `--latent-prior` takes; ArgumentError when that is impossible."""
    try:
        path.write_bytes(to_bytes(prior, checkpoint_sha256))
    except OSError as error:
        raise ArgumentError(
            f"--out {path}: found that it cannot be written ({error.strerror}), expected a place that can; choose one"
        ) from error


def read_prior_file(path: Path) -> FittedPrior:
    """A file of `write_prior`, checked; an EngineError for what is none."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_GRAPH_BYTES + 1)
    except OSError as error:
        raise ArgumentError(
            f"--latent-prior {path}: found nothing to read ({error.strerror}), expected a file that fit-prior wrote; {FIT}"
        ) from error
    prior = parse_prior(data, str(path))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # sound: the tensors were just read through it
    return FittedPrior(path, prior, data, header.get("__metadata__", {}).get("checkpoint_sha256"))


def check_prior(fitted: FittedPrior, model: Model) -> None:
    """Refuse a prior of another model: its values would mean something else to this one."""
    where = f"--latent-prior {fitted.path}"
    drawn, encoder = model.drawn, model.encoder
    if drawn is None or encoder is None:
        raise ArgumentError(
            f"{where}: found a model without an input that is drawn, such as an unconditional one, expected one with a VAE; "
            "leave --latent-prior out"
        )
    check_width(fitted.prior, math.prod(int(d) for d in drawn.sample), where)
    if fitted.checkpoint_sha256 not in (None, encoder.sha256):
        raise ArgumentError(
            f"{where}: found a prior fitted to the VAE of the checkpoint {fitted.checkpoint_sha256}, expected "
            f"{encoder.sha256}, {encoder.path.name}; {FIT}"
        )
