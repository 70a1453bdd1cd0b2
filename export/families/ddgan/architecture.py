"""What weights cannot tell of a denoising diffusion GAN, and its schedule: a few steps of a variance-preserving process."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.bundle.training import PLAIN, ScheduleSpec
from engine.errors import ArgumentError, CheckpointError
from export.models.ncsnpp import GeneratorSpec

BETA_MIN, BETA_MAX = 0.1, 20.0  # of the continuous process, where nothing else is said
BEGIN = 1e-3  # its first time; the last is 1
MOST_STEPS = 1000


@dataclass(frozen=True)
class Options:
    """What a user may say of a checkpoint; None is not said.

    image_size            side of the images;  size: [height, width], where they are to be others
    diffusion_steps       how many steps it was trained for (`num_timesteps`)
    beta_min, beta_max    of the process
    """

    name: str | None = None
    image_size: int | None = None
    size: tuple[int, int] | None = None
    diffusion_steps: int | None = None
    beta_min: float | None = None
    beta_max: float | None = None


@dataclass(frozen=True)
class Architecture:
    """Everything about a model but its weights; notes: what no weight confirms."""

    generator: GeneratorSpec
    size: tuple[int, int]
    schedule: ScheduleSpec
    notes: tuple[str, ...] = field(compare=False)

    @property
    def defaults(self) -> dict[str, Any]:
        """The setting that the bundle records: every step that it was trained for."""
        return {**PLAIN, "method": "ddpm", "steps": self.schedule.T, "timesteps": None, "spacing": "uniform"}


def infer(generator: GeneratorSpec, path: Path, said: Options) -> Architecture:
    """Settle a model; CheckpointError names every option that is missing."""
    asked = {"image size": ("--image-size PIXELS", said.image_size), "steps": ("--diffusion-steps T", said.diffusion_steps)}
    missing = {name: flag for name, (flag, value) in asked.items() if value is None}
    if missing:
        raise CheckpointError(
            f"{path}: found a generator whose weights do not tell its {' and '.join(missing)}; expected to be told: give "
            f"{', '.join(missing.values())} as it was trained (4 steps for CIFAR-10 and LSUN, 2 for CelebA-HQ)"
        )
    assert said.image_size and said.diffusion_steps, "refused above"  # noqa: PT018
    sides = said.size or (said.image_size, said.image_size)
    if any(side < generator.multiple or side % generator.multiple for side in sides):
        flag = "--image-size" if said.size is None else "--size"
        raise ArgumentError(
            f"{flag}: found {sides[0]} x {sides[1]}, expected multiples of {generator.multiple}: the generator halves the "
            f"image {len(generator.widths) - 1} times"
        )
    low, high = (given if given is not None else usual for given, usual in
                 ((said.beta_min, BETA_MIN), (said.beta_max, BETA_MAX)))  # fmt: skip
    assumed = [flag for flag, given in (("--beta-min", said.beta_min), ("--beta-max", said.beta_max)) if given is None]
    note = (
        f"{' and '.join(assumed)}: taken for the reference's ({low:g} and {high:g} here), which no weight confirms, as are "
        "tanh at the end, images in [-1, 1] and the filter 1-3-3-1"
    )
    return Architecture(generator, sides, schedule_of(said.diffusion_steps, low, high), (note,) if assumed else ())


def schedule_of(T: int, low: float, high: float) -> ScheduleSpec:
    """beta_i = 1 - a(t_i+1) / a(t_i) at T + 1 times from 0.001 to 1, where a(t) = exp(-t^2 (high - low) / 2 - t low).

    What lies before the first time counts for nothing: alpha_bar is the product of 1 - beta_i alone.
    """
    if not 1 <= T <= MOST_STEPS or not 0 < low <= high <= 1000:
        raise ArgumentError(
            f"--diffusion-steps, --beta-min, --beta-max: found {T}, {low:g} and {high:g}, expected 1 .. {MOST_STEPS} steps "
            "and 0 < beta-min <= beta-max <= 1000"
        )

    def log_a(i: int) -> float:
        t = BEGIN + (1.0 - BEGIN) * i / T
        return -0.5 * t * t * (high - low) - t * low

    return ScheduleSpec("table", T, {}, tuple(-math.expm1(log_a(i + 1) - log_a(i)) for i in range(T)))
