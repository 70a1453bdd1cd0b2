"""Directions in an encoder's means: towards what has an attribute, or along the axes of the aggregated posterior."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.bundle.directions import TENSOR, Directions
from engine.errors import ArgumentError
from engine.places import unwritable
from export.attributes import Contrast

F64 = npt.NDArray[np.float64]
FOLDS = 5
LEAST = 4 * FOLDS  # images on each side of a contrast
RIDGE = 1e-3  # of the mean variance: encoders leave some dimensions without any
AXIS, AXES = "axis {}", 10


@dataclass(frozen=True)
class Fitted:
    """Directions and what is known of each: balanced accuracy of its probe on images that it was not fitted to."""

    directions: Directions
    accuracy: dict[str, float]


def fit(z: npt.ArrayLike, contrasts: Sequence[Contrast], *, orthogonal: bool = False, seed: int = 0) -> Fitted:
    """A direction for each contrast of means [N, D]: from the mean of the one side to that of the other.

    orthogonal: without what the probes of other attributes see of it, at the least change for the data's covariance S:
        d - S W' (W S W')^-1 W d,   scaled so that the own probe sees as much as before
    """
    points = _checked(z)
    sides = np.stack([contrast.side for contrast in contrasts])
    spread, apart = _covariance(points), _apart(points, sides)
    probes = np.linalg.solve(spread, apart.T).T
    if orthogonal:
        apart = np.stack([_orthogonal(k, contrasts, apart[k], probes, spread) for k in range(len(contrasts))])
    names = tuple(contrast.name for contrast in contrasts)
    accuracy = dict(zip(names, _accuracy(points, sides, seed), strict=True))
    return Fitted(Directions(names, apart.astype(np.float32)), accuracy)


def axes(z: npt.ArrayLike, logvar: npt.ArrayLike, count: int) -> tuple[Directions, list[float]]:
    """The first principal axes of the aggregated posterior, one standard deviation long, and their shares of its variance.

    The covariance is that of the means and the mean of the posteriors' variances; the sign is such that the largest
    coordinate is positive.
    """
    points, variances = _checked(z), np.exp(np.asarray(logvar, np.float64))
    if not 1 <= count <= points.shape[1]:
        raise ArgumentError(f"--axes: found {count}, expected 1..{points.shape[1]}, the width of the latent")
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False) + np.diag(variances.mean(axis=0)))
    found = (vectors * np.sqrt(values)).T[::-1][:count]
    signs = np.sign(found[np.arange(count), np.abs(found).argmax(axis=1)])
    names = tuple(AXIS.format(i + 1) for i in range(count))
    return Directions(names, (found * signs[:, None]).astype(np.float32)), (values[::-1][:count] / values.sum()).tolist()


def joined(parts: Sequence[Directions]) -> Directions:
    """All of them as one; ArgumentError where two have one name."""
    names = [name for part in parts for name in part.names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ArgumentError(f"attributes: found two directions {twice[0]!r}, expected names that do not clash; rename one")
    return Directions(tuple(names), np.concatenate([part.vectors for part in parts]))


def _checked(z: npt.ArrayLike) -> F64:
    points = np.asarray(z, np.float64)
    if points.ndim != 2 or len(points) < 2 * LEAST or not np.isfinite(points).all():
        raise ArgumentError(
            f"found means {list(points.shape)}, NaN and infinity apart, expected {2 * LEAST} images or more; take more"
        )
    return points


def _covariance(points: F64) -> F64:
    spread = np.cov(points, rowvar=False).reshape(points.shape[1], -1)
    ridged: F64 = spread + RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    return ridged


def _apart(points: F64, sides: npt.NDArray[np.bool_]) -> F64:
    """The mean of each side less that of the rest, [K, D]."""
    one = sides.astype(np.float64)
    with_it, without = (weights @ points / weights.sum(axis=1, keepdims=True) for weights in (one, 1 - one))
    apart: F64 = with_it - without
    return apart


def _orthogonal(k: int, contrasts: Sequence[Contrast], direction: F64, probes: F64, spread: F64) -> F64:
    others = probes[[contrast.attribute != contrasts[k].attribute for contrast in contrasts]]
    if not len(others):
        return direction
    seen = np.linalg.lstsq(others @ spread @ others.T, others @ direction, rcond=1e-8)[0]
    rest: F64 = direction - spread @ others.T @ seen
    left, whole = probes[k] @ rest, probes[k] @ direction
    if left < 0.05 * whole:
        raise ArgumentError(
            f"{contrasts[k].name}: found that other attributes tell all of it, expected something of its own; leave "
            "--orthogonal out, or leave an attribute out"
        )
    return rest * (whole / left)


def _accuracy(points: F64, sides: npt.NDArray[np.bool_], seed: int) -> list[float]:
    """Of linear discriminants, each fold judged by those of the others: the mean of the shares found on both sides."""
    fold = np.random.default_rng(seed).permutation(len(points)) % FOLDS
    said = np.empty_like(sides)
    for k in range(FOLDS):
        known, unseen = fold != k, fold == k
        apart = _apart(points[known], sides[:, known])
        probes = np.linalg.solve(_covariance(points[known]), apart.T).T
        one = sides[:, known].astype(np.float64)
        middle = sum(w @ points[known] / w.sum(axis=1, keepdims=True) for w in (one, 1 - one)) / 2
        said[:, unseen] = probes @ points[unseen].T > (probes * middle).sum(axis=1, keepdims=True)
    return [(float(s[y].mean()) + float((~s[~y]).mean())) / 2 for s, y in zip(said, sides, strict=True)]


def save_file(path: Path, directions: Directions, record: Mapping[str, Any], checkpoint_sha256: str) -> None:
    """Write directions for bundles that are built again of the same checkpoint."""
    about = {"names": json.dumps(directions.names), "record": json.dumps(record), "checkpoint_sha256": checkpoint_sha256}
    try:
        path.write_bytes(save({TENSOR: directions.vectors}, about))
    except OSError as error:
        raise unwritable(path, error) from error


def load_file(path: Path, width: int, checkpoint_sha256: str) -> tuple[Directions, dict[str, Any]]:
    """The directions of such a file and their record; ArgumentError for another checkpoint's, and for what is none."""
    try:
        with safe_open(path, "numpy") as file:
            about, vectors = file.metadata() or {}, file.get_tensor(TENSOR)
            names, record = tuple(json.loads(about["names"])), dict(json.loads(about["record"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArgumentError(
            f"--take {path}: found nothing that can be read ({error}), expected a file that --save wrote; fit with --images"
        ) from error
    if vectors.shape != (len(names), width) or vectors.dtype != np.float32:
        expected = f"float32 [{len(names)}, {width}], the width of the latent"
        raise ArgumentError(f"--take {path}: found {vectors.dtype} {list(vectors.shape)}, expected {expected}")
    if about.get("checkpoint_sha256") != checkpoint_sha256:
        raise ArgumentError(
            f"--take {path}: found directions of the checkpoint {about.get('checkpoint_sha256')}, expected "
            f"{checkpoint_sha256}, of which the bundle was built; fit with --images"
        )
    return Directions(names, vectors), record
