"""How good the pictures of a setting are: a Fréchet distance on features, and the drift of colour that bounds it.

FD alone is an unsafe judge: on the shipped model a chain from far back has the lowest of all and paints faces magenta.
Colour is the Fréchet distance of the means of each channel over a 4x4 grid, on images in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import Sampler
from engine.errors import ArgumentError
from engine.result import U8
from export.fitting.features import Features
from export.fitting.frechet import frechet_distance, moments

F64 = npt.NDArray[np.float64]

CHUNK = 64  # images sampled at a time
GRID = 4
COLOUR_SLACK = 0.02  # above the colour distance of the start images, or of the training images among themselves


@dataclass(frozen=True)
class Score:
    """fd and colour, the two distances to the training images; excess, how far colour is above its bound (0: within)."""

    fd: float
    colour: float
    excess: float

    @property
    def rank(self) -> tuple[float, float]:
        """Smaller is better: first the bound, then FD."""
        return (self.excess, self.fd)

    def within(self, bound: float) -> Score:
        """The same distances beside another bound of colour."""
        return replace(self, excess=max(0.0, self.colour - bound))


class Reference:
    """What settings are measured against: training images uint8 [N, H, W, C] on features, and their colours."""

    def __init__(self, features: Features, images: U8) -> None:
        if len(images) < 4:
            raise ArgumentError(f"images holds {len(images)}; expected a few hundred training images")
        self.features, self.images = features, images
        self.moments = moments(features(images))
        self.colours = moments(colour_means(images))


class Conditions:
    """What samples are conditioned on, by input: one value for all, or rows, which samples take in turn."""

    def __init__(self, sampler: Sampler, inputs: Mapping[str, Any]) -> None:
        """inputs: as `Sampler.sample` takes them, but of any number of rows."""
        ranks = {spec.name: len(spec.shape) for spec in sampler.bundle.manifest.inputs}
        self.of_all = dict(inputs)
        self.rows = {
            name: value for name, value in inputs.items()
            if isinstance(value, np.ndarray) and value.ndim == ranks.get(name) and len(value) > 1
        }  # fmt: skip

    def of(self, begin: int, end: int) -> dict[str, Any]:
        """Those of samples begin .. end - 1."""
        return self.of_all | {name: rows[np.arange(begin, end) % len(rows)] for name, rows in self.rows.items()}


class Objective:
    """Scores over a fixed set of seeds: two settings are compared on the same noise and the same conditions."""

    def __init__(
        self, sampler: Sampler, reference: Reference, seeds: Sequence[int], image: bool, conditions: Conditions
    ) -> None:
        """image: whether chains start from the pipeline's start image."""
        self.sampler, self.reference, self.seeds, self.conditions = sampler, reference, list(seeds), conditions
        self.bound = self._floor(reference.images, image) + COLOUR_SLACK

    def score(self, options: dict[str, Any]) -> Score:
        """Sample every seed with these options of `Sampler.sample`."""
        extracted, colours = [], []
        for begin in range(0, len(self.seeds), CHUNK):
            seeds = self.seeds[begin : begin + CHUNK]
            given = self.conditions.of(begin, begin + len(seeds))
            images = self.sampler.sample(seed=seeds, **options, **given).images
            extracted.append(self.reference.features(images))
            colours.append(colour_means(images))
        colour = frechet_distance(self.reference.colours, moments(np.concatenate(colours)))
        fd = frechet_distance(self.reference.moments, moments(np.concatenate(extracted)))
        return Score(fd, colour, 0.0).within(self.bound)

    def bound_beside(self, plain: Score) -> float:
        """The bound of colour for what replaces a plain setting: where that is beyond the bound itself, its own colour.

        A model whose colours no setting brings within the bound would else be fitted to its colours alone, at FD's expense.
        """
        return max(self.bound, plain.colour)

    def _floor(self, images: U8, image: bool) -> float:
        """The colour distance that no setting can help: of these seeds' start images, or of as many training images."""
        pipeline = self.sampler.bundle.manifest.pipeline
        if image and not pipeline.after:  # otherwise what the chain starts from is no image
            starts = [self._starts(begin, self.seeds[begin : begin + CHUNK]) for begin in range(0, len(self.seeds), CHUNK)]
            return frechet_distance(self.reference.colours, moments(colour_means(np.concatenate(starts))))
        half = min(len(self.seeds), len(images) // 2)
        return frechet_distance(moments(colour_means(images[half:])), moments(colour_means(images[:half])))

    def _starts(self, begin: int, seeds: list[int]) -> U8:
        given = self.conditions.of(begin, begin + len(seeds))
        pixels = self.sampler.sample(seed=seeds, steps=1, spacing="linspace", setting="plain", **given).start
        assert pixels is not None, "a chain from the start image has one"
        return pixels


def colour_means(images: U8) -> F64:
    """The mean of every channel in every cell of a GRID x GRID grid, float64 [N, GRID * GRID * C], of images in [-1, 1]."""
    rows, columns = (np.array_split(np.arange(images.shape[axis]), GRID) for axis in (1, 2))
    cells = [images[:, row[0] : row[-1] + 1, column[0] : column[-1] + 1] for row in rows for column in columns]
    return np.concatenate([cell.mean(axis=(1, 2), dtype=np.float64) for cell in cells], axis=1) / 127.5 - 1.0
