"""Damages that pictures come with: noise, blur, lost resolution, JPEG, salt and pepper, masks; each of several strengths.

A damage of an image depends on the image, the strength and the image's seed alone: image i of a call draws from seed + i.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.result import U8

F64 = npt.NDArray[np.float64]
Apply = Callable[[U8, float, np.random.Generator], U8]


def _noise(image: U8, sigma: float, rng: np.random.Generator) -> U8:
    return _pixels(image + 255 * sigma * rng.standard_normal(image.shape))


def _blur(image: U8, sigma: float, rng: np.random.Generator) -> U8:
    radius = int(np.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    blurred = image.astype(np.float64)
    for axis in (0, 1):
        padded = np.pad(blurred, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=axis)
        blurred = windows @ (taps / taps.sum())
    return _pixels(blurred)


def _low_resolution(image: U8, factor: float, rng: np.random.Generator) -> U8:
    height, width = image.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    resized = [p.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC) for p in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=2)


def _jpeg(image: U8, quality: float, rng: np.random.Generator) -> U8:
    file = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as opened:
        return np.asarray(opened).reshape(image.shape)


def _salt_and_pepper(image: U8, percent: float, rng: np.random.Generator) -> U8:
    hit, white = rng.random((2, *image.shape[:2], 1))
    return np.where(hit < percent / 100, np.where(white < 0.5, 0, 255), image).astype(np.uint8)


def _mask(image: U8, share: float, rng: np.random.Generator) -> U8:
    height, width = (max(1, round(side * share)) for side in image.shape[:2])
    top, left = (int(rng.integers(0, side - size + 1)) for side, size in zip(image.shape[:2], (height, width), strict=True))
    masked = image.copy()
    masked[top : top + height, left : left + width] = 128
    return masked


def _pixels(values: F64) -> U8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Damage:
    """One kind of damage at one strength, whose unit is the kind's own."""

    kind: str
    strength: float
    unit: str
    apply: Apply

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"{self.kind}, {self.unit.format(self.strength)}"

    def __call__(self, images: U8, seed: int) -> U8:
        """uint8 [N, H, W, C], of 1 or 3 channels, damaged."""
        return np.stack([
            self.apply(image, self.strength, np.random.default_rng(seed + index)) for index, image in enumerate(images)
        ])  # fmt: skip


# The strengths that benchmarks measure, and between and around them those that starts are fitted to: none is in both.
KINDS: tuple[tuple[str, str, Apply, tuple[float, ...], tuple[float, ...]], ...] = (
    ("Gaussian noise", "sigma {:g}", _noise, (0.05, 0.1, 0.2, 0.4), (0.02, 0.04, 0.06, 0.085, 0.12, 0.16, 0.25, 0.35, 0.5)),
    ("blur", "sigma {:g} px", _blur, (0.6, 1.0, 2.0), (0.35, 0.44, 0.55, 0.68, 0.85, 1.07, 1.33, 1.67, 2.6)),
    ("low resolution", "x{:g}", _low_resolution, (2, 4), (1.35, 1.6, 2.5, 3, 5)),
    ("JPEG", "quality {:g}", _jpeg, (50, 20, 8), (90, 80, 70, 60, 40, 30, 15, 12)),
    ("salt and pepper", "{:g}%", _salt_and_pepper, (2, 10, 25), (1, 1.6, 2.5, 3.6, 5, 7, 13, 17, 35)),
    ("mask", "{:.0%} of the side", _mask, (0.25, 0.5), (0.1, 0.15, 0.22, 0.33, 0.43, 0.56, 0.7)),
)
MEASURED = tuple(Damage(kind, strength, unit, apply) for kind, unit, apply, strengths, _ in KINDS for strength in strengths)
FITTED = tuple(Damage(kind, strength, unit, apply) for kind, unit, apply, _, strengths in KINDS for strength in strengths)
