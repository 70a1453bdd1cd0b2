"""What a bundle's encoder makes of images: the mean and the log-variance of the drawn input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine import Sampler
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import IMAGE
from engine.cli.terminal import shows_progress
from engine.errors import ArgumentError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
BATCH = 64


def bar(label: str, unit: str) -> Callable[[Iterable[int]], Iterable[int]]:
    """What shows on stderr how far a loop is, once it takes more than two seconds."""
    from tqdm import tqdm

    return lambda steps: tqdm(steps, desc=label, unit=unit, delay=2, leave=False, disable=not shows_progress())


@dataclass(frozen=True)
class Posterior:
    """The names by which a model's encoder gives the mean and the log-variance of its drawn input, and the input's width."""

    mean: str
    log_variance: str
    width: int


def posterior_of(manifest: Manifest, source: Path) -> Posterior:
    """What the bundle's `encode` gives of the drawn input; ArgumentError where it gives no Gaussian."""
    drawn = manifest.drawn
    made = [name for call in manifest.pipeline.encode for name in call.outputs.values()]
    others = [name for name in made if drawn is not None and name != drawn.name]
    if drawn is None or drawn.name not in made or len(others) != 1:
        raise ArgumentError(
            f"{source}: found a model without an encoder's mean and log-variance of an input that is drawn, such as an "
            "unconditional one, expected one with a VAE, whose latents are fitted"
        )
    return Posterior(drawn.name, others[0], math.prod(int(d) for d in drawn.sample))


def encoder_shape(sampler: Sampler) -> tuple[int, int, int]:
    """The [C, H, W] of the images that the encoder takes."""
    for call in sampler.bundle.manifest.pipeline.encode:
        for tensor in sampler.bundle.spec(call.graph).inputs:
            if call.inputs[tensor.name] == IMAGE:
                channels, height, width = (int(d) for d in tensor.sample)
                return channels, height, width
    raise AssertionError("posterior_of refuses a bundle without an encoder")


def encode(sampler: Sampler, posterior: Posterior, images: U8, label: str) -> tuple[F32, F32]:
    """The posterior of every image: mean and log-variance, float32 [N, D] each."""
    parts = [
        sampler.encode(images[begin : begin + BATCH]) for begin in bar(label, "batch")(range(0, len(images), BATCH))
    ]
    mean, log_variance = (
        np.concatenate([part[name].reshape(-1, posterior.width) for part in parts])
        for name in (posterior.mean, posterior.log_variance)
    )
    return mean, log_variance
