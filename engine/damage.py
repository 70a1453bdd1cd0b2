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
from engine.solver.timesteps import LEADING, nearest_start

AUTO = "auto"
PARTS = 8  # along each axis


class Estimate(NamedTuple):
    """What each image looks like, [N] each, of pixels in [0, 1].

    noise     the standard deviation of white noise in it, as the mean second difference tells it
    quiet     the same of its quietest quarter: clean pictures have flat parts, which noise and JPEG disturb
    peak      the same of its steepest pixel: impulses are steeper than edges, and blurred edges less steep
    residual  RMS distance from the encoder's reconstruction; 0 where the pipeline has none
    part      the same of the mean colours of the worst of 8 x 8 parts, such as one that a mask hides
    """

    noise: F32
    quiet: F32
    peak: F32
    residual: F32
    part: F32


def estimate(pipeline: Pipeline, pixels: F32) -> Estimate:
    """Of images [N, C, H, W] in [0, 1]."""
    return Estimate(*noise_of(pixels), *_residual(pipeline, pixels))


def noise_of(pixels: F32) -> tuple[F32, F32, F32]:
    """The noise in each image, in its quietest quarter and in its steepest pixel, [N] each: what second differences along
    both axes leave of it, in standard deviations of white noise.

    [1 -2 1; -2 4 -2; 1 -2 1] sees no plane and no straight edge along an axis, and multiplies the variance of white noise
    by 36 (Immerkaer 1996). 0 for images of less than three pixels along an axis.
    """
    found = pixels
    for axis in (2, 3):
        if found.shape[axis] < 3:
            nothing = np.zeros(len(pixels), np.float32)
            return nothing, nothing, nothing
        found = np.diff(found, 2, axis=axis)
    size = np.float32(np.sqrt(np.pi / 2) / 6) * np.abs(found).reshape(len(pixels), -1)
    quiet: F32 = np.partition(size, size.shape[1] // 4, axis=1)[:, size.shape[1] // 4]
    return size.mean(axis=1), quiet, size.max(axis=1)


def _residual(pipeline: Pipeline, pixels: F32) -> tuple[F32, F32]:
    """How far each image, and its worst part, is from what `encode` and `before` make of it, [N] each."""
    start = pipeline.spec.state.start
    names = [spec.name for spec in pipeline.manifest.inputs]
    encoded: Arrays = pipeline.encode(pixels) if pipeline.spec.encode and pipeline.spec.image == X else {}
    encoded = abilities.declared(pipeline.manifest, encoded)
    if start is None or start in names or set(encoded) != set(names):
        return np.zeros(len(pixels), np.float32), np.zeros(len(pixels), np.float32)
    off = np.clip((pipeline.decode(encoded) + 1) / 2, 0, 1) - pixels
    n, channels, *sides = off.shape
    height, width = (max(1, side // PARTS) for side in sides)
    rows, columns = sides[0] // height, sides[1] // width
    whole = off[:, :, : rows * height, : columns * width]
    parts = whole.reshape(n, channels, rows, height, columns, width).mean(axis=(3, 5))
    worst: F32 = np.sqrt(np.square(parts).mean(axis=1)).max(axis=(1, 2))
    return np.sqrt(np.square(off).mean(axis=(1, 2, 3))), worst


def with_start(pipeline: Pipeline, pixels: F32 | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `refine`, a t_start of "auto" replaced by that of the table; one for all images.

    pixels: None where there are none yet, for a check: then the latest start of all.
    """
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
    latest = manifest.schedule.T - 1
    chosen = latest if pixels is None else manifest.refine.choose(np.stack(estimate(pipeline, pixels), 1))
    given = options.get("steps")
    steps, spacing = manifest.defaults.steps if given is None else check_integer("steps", given), options.get("spacing")
    if spacing not in LEADING:  # a chain of many steps needs as many timesteps below its start
        chosen = min(max(chosen, steps - 1), latest)
    return {**options, "t_start": nearest_start(pipeline.schedule.alpha_bar, steps, spacing, chosen)}
