"""A fitted prior: the density that a drawn input comes from instead of N(0, I).

Ex-post density estimation: a Gaussian mixture over an encoder's aggregated posterior stands in for N(0, I), which that
posterior never quite is. A sample's z is a function of its seed alone:

    k   the first component with word / 2**32 < w_1 + ... + w_k, word the first Philox word of (seed, STREAM_PRIOR)
    u   the standard normals that are z itself where it is drawn from N(0, I)
    z   mean_k + scale_tril_k @ u, each row summed from the left in float32, the mean last

The thresholds w_1 + ... + w_k are rounded down to whole 2**-32ths once, in float64, so that every comparison is one of
integers: the same component in any language.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from engine import kernels
from engine.bundle.fields import shorten
from engine.bundle.reader import Bundle
from engine.commands import command
from engine.errors import ArgumentError, BundleError, did_you_mean
from engine.solver import noise as noises
from engine.solver.noise import F32, Seeds

PRIORS = ("bundle", "standard")  # what a caller may name: the bundle's own density, or N(0, I)
TENSORS = ("weights", "means", "scale_tril")
SUM_TOLERANCE = 1e-4
FIT = "fit it again with: " + command("fit-prior", "BUNDLE", "--images", "FILE", "--components", "K", "--out", "FILE")


@dataclass(frozen=True, eq=False)
class Prior:
    """A Gaussian mixture: weights float32 [K], means [K, D], scale_tril [K, D, D] (lower Cholesky factors)."""

    weights: F32
    means: F32
    scale_tril: F32

    @property
    def components(self) -> int:
        """How many Gaussians are mixed."""
        return len(self.weights)

    @property
    def width(self) -> int:
        """Numbers in one sample of the input."""
        return int(self.means.shape[1])

    @functools.cached_property
    def thresholds(self) -> npt.NDArray[np.uint64]:
        """A word below the k-th chooses component k or an earlier one, [K]; the last is 2**32."""
        total = np.cumsum(self.weights.astype(np.float64))
        ends: npt.NDArray[np.uint64] = np.floor(total / total[-1] * 2.0**32).astype(np.uint64)
        return ends

    def draw(self, seeds: Seeds) -> F32:
        """A draw for each seed, float32 [N, D]: the same in any batch."""
        units = noises.drawn(seeds, (self.width,))
        return kernels.mixture(seeds, self.thresholds, self.means, self.scale_tril, units)


def read_prior(bundle: Bundle) -> Prior | None:
    """The fitted prior of a bundle, None where it has none; BundleError when the file is not what the manifest says."""
    spec, data = bundle.manifest.prior, bundle.read_prior()
    if spec is None or data is None:
        return None
    where = str(bundle.path / spec.file)
    prior = parse_prior(data, where)
    if prior.components != spec.components:
        _refuse(where, f"{prior.components} components", f"{spec.components}, as the manifest says")
    drawn = bundle.manifest.drawn
    assert drawn is not None, "a manifest with a prior has an input that is drawn"
    check_width(prior, math.prod(int(d) for d in drawn.sample), where)
    return prior


def check_width(prior: Prior, width: int, where: str) -> None:
    """BundleError unless the prior is one of an input of this width."""
    if prior.width != width:
        _refuse(where, f"a prior of width {prior.width}", f"{width}, the input's")


def resolve_prior(asked: str | None, has_prior: bool) -> str:
    """The prior to draw from: None is the bundle's own where it has one. ArgumentError for what is not there."""
    if asked is None:
        return "bundle" if has_prior else "standard"
    if not isinstance(asked, str) or asked not in PRIORS:
        hint = did_you_mean(str(asked), PRIORS)
        raise ArgumentError(f"prior: found {asked!r}, expected None or one of {', '.join(PRIORS)}.{hint}")
    if asked == "bundle" and not has_prior:
        raise ArgumentError(
            "prior: found 'bundle', but this bundle holds no fitted prior; expected 'standard' or None. Fit one with: "
            f"{command('fit-prior', 'BUNDLE', '--images', 'FILE', '--out', 'FILE')}, and build the bundle again with "
            "--latent-prior FILE"
        )
    return asked


def parse_prior(data: bytes, where: str) -> Prior:
    """The bytes of a prior's file, every tensor checked; BundleError otherwise."""
    try:
        entries = dict(deserialize(data))
    except SafetensorError as error:
        raise BundleError(f"{where}: found {shorten(str(error))}, expected a prior in safetensors; {FIT}") from error
    if sorted(entries) != sorted(TENSORS):
        _refuse(where, f"the tensors {shorten(sorted(entries))}", ", ".join(TENSORS))
    weights, means, scale_tril = (_tensor(entries[name], name, where) for name in TENSORS)
    return checked_prior(weights, means, scale_tril, where)


def _tensor(entry: dict[str, object], name: str, where: str) -> F32:
    shape, data = entry["shape"], entry["data"]
    assert isinstance(shape, list) and isinstance(data, (bytes, bytearray)), "safetensors hands out shape and bytes"  # noqa: PT018
    if entry["dtype"] != "F32":
        _refuse(where, f"{name} of dtype {entry['dtype']}", "F32")
    return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)


def checked_prior(weights: F32, means: F32, scale_tril: F32, where: str) -> Prior:
    """The mixture of these tensors; BundleError names the first that cannot be part of one."""
    shapes = f"weights {list(weights.shape)}, means {list(means.shape)}, scale_tril {list(scale_tril.shape)}"
    components, width = means.shape if means.ndim == 2 else (0, 0)
    fits = weights.shape == (components,) and scale_tril.shape == (components, width, width)
    if not (components and width and fits):
        _refuse(where, shapes, "[K], [K, D] and [K, D, D]")
    for name, tensor in zip(TENSORS, (weights, means, scale_tril), strict=True):
        if not np.isfinite(tensor).all():
            _refuse(where, f"NaN or infinity in {name}", "finite numbers")
    total = float(weights.sum(dtype=np.float64))
    if not (weights > 0).all() or abs(total - 1) > SUM_TOLERANCE:
        _refuse(where, f"weights of at least {weights.min():.3g} with the sum {total:.6g}", "positive ones with the sum 1")
    if not (np.diagonal(scale_tril, axis1=1, axis2=2) > 0).all():
        _refuse(where, "a diagonal of scale_tril that is not positive", "Cholesky factors")
    if np.triu(scale_tril, 1).any():
        _refuse(where, "values above the diagonal of scale_tril", "lower triangular matrices")
    return Prior(weights, means, scale_tril)


def _refuse(where: str, found: str, expected: str) -> NoReturn:
    raise BundleError(f"{where}: found {found}, expected {expected}; {FIT}")
