"""How good a set of images is beside the held-out ones: distances on two networks and of colour, precision and recall."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from export.fitting.features import DEFAULT, NETWORKS, EfficientNet, Features
from export.fitting.frechet import frechet_distance, moments
from export.fitting.neighbours import precision_recall
from export.fitting.objective import CHUNK, colour_means

U8 = npt.NDArray[np.uint8]
Progress = Callable[[int], object]

# Settings are fitted on the first; the second has no part in it.
FIRST, SECOND = DEFAULT, "efficientnet-lite2"
METRIC, SECOND_METRIC = (f"FD ({NETWORKS[name].title})" for name in (FIRST, SECOND))


class Judge:
    """Scores images against `heldout`, uint8 [N, H, W, 3]; precision and recall against the first `samples` of them."""

    def __init__(self, heldout: U8, samples: int, extractors: Sequence[Features], tick: Progress) -> None:
        self.extractors, self.heldout = extractors, len(heldout)
        seen = [extract(features, heldout, tick) for features in extractors]
        self.moments = [moments(features) for features in seen]
        self.colours = moments(colour_means(heldout))
        self.neighbours = seen[0][:samples]

    def scores(self, images: U8, tick: Progress) -> dict[str, float]:
        """The columns of a row. `tick` is told of each image once for either network."""
        seen = [extract(features, images, tick) for features in self.extractors]
        fd, second = (frechet_distance(of, moments(features)) for of, features in zip(self.moments, seen, strict=True))
        count = min(len(images), len(self.neighbours))
        near = precision_recall(self.neighbours[:count], seen[0][:count])
        return {
            "fd": round(fd, 3),
            "fd_second": round(second, 3),
            "colour": round(frechet_distance(self.colours, moments(colour_means(images))), 5),
            "precision": round(near.precision, 4),
            "recall": round(near.recall, 4),
        }


def extract(features: Features, images: U8, tick: Progress) -> npt.NDArray[np.float32]:
    """Features of all images, chunk by chunk."""
    parts = []
    for begin in range(0, len(images), CHUNK):
        parts.append(features(images[begin : begin + CHUNK]))
        tick(len(parts[-1]))
    return np.concatenate(parts)


def open_extractor(network: str, threads: int) -> Features:
    """A named network; a function of its own so that tests can measure with a cheaper one."""
    return EfficientNet(NETWORKS[network], threads)
