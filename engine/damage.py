"""An estimate of how damaged images are, and the timestep that a bundle's table starts `refine` from for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from engine import abilities
from engine.argument_checks import check_integer
from engine.bundle.pipeline import X
from engine.commands import command
from engine.errors import ArgumentError
from engine.pipeline import Arrays, Pipeline
from engine.result import F32

AUTO = "auto"


class Estimate(NamedTuple):
    """The mean over images of the noise in each and of its distance from the encoder's reconstruction (0 where the pipeline
    has none), both RMS in [0, 1]."""

    noise: float
    residual: float


def estimate(pipeline: Pipeline, pixels: F32) -> Estimate:
    """Of images [N, C, H, W] in [0, 1]."""
    return Estimate(float(noise_of(pixels).mean()), float(_residual(pipeline, pixels).mean()))


def noise_of(pixels: F32) -> F32:
    """The standard deviation of white noise in each image, [N]: what the second differences along both axes leave of it.

    [1 -2 1; -2 4 -2; 1 -2 1] sees no plane and no straight edge along an axis, and multiplies the variance of white noise
    by 36 (Immerkaer 1996). 0 for images of less than three pixels along an axis.
    """
    found = pixels
    for axis in (2, 3):
        if found.shape[axis] < 3:
            return np.zeros(len(pixels), np.float32)
        found = np.diff(found, 2, axis=axis)
    noise: F32 = np.sqrt(np.pi / 2) / 6 * np.abs(found).mean(axis=(1, 2, 3))
    return noise


def _residual(pipeline: Pipeline, pixels: F32) -> F32:
    """How far each image is from what `encode` and `before` make of it, [N]."""
    start = pipeline.spec.state.start
    names = [spec.name for spec in pipeline.manifest.inputs]
    encoded: Arrays = pipeline.encode(pixels) if pipeline.spec.encode and pipeline.spec.image == X else {}
    encoded = abilities.declared(pipeline.manifest, encoded)
    if start is None or start in names or set(encoded) != set(names):
        return np.zeros(len(pixels), np.float32)
    made = np.clip((pipeline.decode(encoded) + 1) / 2, 0, 1)
    residual: F32 = np.sqrt(np.square(made - pixels).mean(axis=(1, 2, 3)))
    return residual


def with_start(pipeline: Pipeline, pixels: F32, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `refine`, a t_start of "auto" replaced by that of the table; one for all images."""
    asked = options.get("t_start")
    if not isinstance(asked, str):
        return dict(options)
    if asked != AUTO:
        raise ArgumentError(f"t_start is {asked!r}; expected a timestep, {AUTO!r}, or None.")
    manifest = pipeline.manifest
    if manifest.refine is None:
        cure = command("fit-refine", str(pipeline.bundle.path), "--images", "FILE")
        raise ArgumentError(
            f"t_start is {AUTO!r}, but this bundle has no table of starts; expected a timestep. Fit the table with: {cure}"
        )
    chosen = manifest.refine.nearest(*estimate(pipeline, pixels)).t_start
    steps = options.get("steps")
    # A chain of many steps needs as many timesteps below its start.
    least = (manifest.defaults.steps if steps is None else check_integer("steps", steps)) - 1
    return {**options, "t_start": min(max(chosen, least), manifest.schedule.T - 1)}
