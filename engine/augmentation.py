"""Conditioning augmentation: noise on the picture that a bundle takes, at a level of the bundle's own schedule.

    low' = sqrt(alpha_bar_s) low + sqrt(1 - alpha_bar_s) n,   n ~ N(0, I)

(Ho et al. 2021, "Cascaded Diffusion Models for High Fidelity Image Generation", section 4.2.) s is the noise level, a
timestep; 0 leaves the picture as it is, bit for bit. The noise is of a stream of its own. A bundle whose network hears of
the level says which input that is (`augmentation` in the manifest).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.argument_checks import check_integer
from engine.bundle.manifest import Manifest
from engine.errors import ArgumentError
from engine.pipeline import Pipeline
from engine.result import F32
from engine.solver import noise as noises
from engine.solver.noise import Seeds


def checked_level(manifest: Manifest, noise_level: Any) -> int:
    """The level as an integer; None is 0."""
    if noise_level is None:
        return 0
    level, most = check_integer("noise_level", noise_level), manifest.schedule.T - 1
    if not 0 <= level <= most:
        raise ArgumentError(
            f"noise_level is {level}; expected 0 (none) .. {most}, a timestep of this bundle's schedule. Choose "
            "a smaller one, of which more of the picture is left."
        )
    return level


def with_level(manifest: Manifest, options: Mapping[str, Any], noise_level: Any, what: str) -> dict[str, Any]:
    """The options with the level under the name of the input that is told it, where the bundle has one."""
    spec = manifest.augmentation
    if spec is None:
        return dict(options)
    if options.get(spec.input) is None:
        return {**options, spec.input: _number(manifest, spec.input, checked_level(manifest, noise_level))}
    if noise_level is not None:
        raise ArgumentError(
            f"{what} was given noise_level and {spec.input}, which it sets; expected one of the two. Leave {spec.input} out."
        )
    return dict(options)


def augmented(pipeline: Pipeline, picture: F32, seeds: Seeds, level: int) -> F32:
    """Pictures [N, C, H, W] in [-1, 1] at a noise level."""
    if level == 0:
        return picture
    alpha_bar = float(pipeline.schedule.alpha_bar[level])
    signal, sigma = np.float32(np.sqrt(alpha_bar)), np.float32(np.sqrt(1 - alpha_bar))
    noised: F32 = signal * picture + sigma * noises.augmentation(seeds, picture.shape[1:])
    return noised


def _number(manifest: Manifest, name: str, level: int) -> np.ndarray:
    dtype = next(spec.dtype for spec in manifest.inputs if spec.name == name)
    return np.array([level], np.int64 if dtype == "int64" else np.float32)
