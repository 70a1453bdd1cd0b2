"""Sizes a call, beside a Sampler's own: their pipelines over the same weights, of which the last used are kept."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, TypeAlias

from engine import backends, checks, memory
from engine.argument_checks import check_integer, check_pair
from engine.cleanup import run_all
from engine.deadline import Deadlines
from engine.errors import ArgumentError
from engine.pipeline import Pipeline
from engine.solver.noise import listed_seeds

Size: TypeAlias = "tuple[int, int] | None"  # height and width of images; None: the Sampler's own
KEPT = 2  # sizes beside the own, unless a caller says otherwise


@dataclass(frozen=True)
class Sized:
    """What runs requests of one size, and what is promised for it."""

    pipeline: Pipeline
    deadlines: Deadlines


def check_kept(sizes: object) -> int:
    """ArgumentError for a number of sizes that is none."""
    kept = check_integer("sizes", sizes)
    if kept < 1:
        raise ArgumentError(f"sizes is {kept}; expected at least 1, as a call of another size keeps its own.")
    return kept


def least(n: Any, seeds: Any, images: Any) -> int:
    """How many samples a request has at least, of what it gives of the three, before any of it is checked."""
    listed = None if seeds is None else listed_seeds(seeds)
    shape: tuple[Any, ...] = getattr(images, "shape", ())
    found = (checks.count_of(n) or 1, 0 if listed is None else len(listed), int(shape[0]) if len(shape) == 4 else 0)
    return max(found)


class Sizes:
    """At most `kept` sizes beside a Sampler's own. Not safe for two threads: the Sampler sees to that."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self._sized: OrderedDict[tuple[int, int], Sized] = OrderedDict()  # the last used at the end

    def __len__(self) -> int:
        return len(self._sized)

    def at(self, own: Sized, backend: str, size: tuple[int, int], n: int) -> Sized:
        """What runs at least n images of a size: `own`, or another over its weights; in tiles where `own` is in tiles.

        What cannot be is refused before anything is loaded or closed: ArgumentError for a size, BackendError for a backend
        of plans, HostMemoryError where n images have no room. The size that was not used for longest is closed where there
        are too many.
        """
        bundle = own.pipeline.bundle
        height, width = check_pair("size", size, "two, (height, width)")
        if (height, width) == bundle.manifest.pipeline.image_shape[1:]:
            return own
        if found := self._sized.get((height, width)):
            self._sized.move_to_end((height, width))
            return found
        resized = bundle.resized((height, width), bundle.resizing[1])
        backends.check_size(resized.of_graphs, backend)
        if resized.canvas is not None and resized.canvas.block is not None:
            at_once = min(n, own.pipeline.max_batch)
            memory.check_room(resized.manifest.pipeline, 1, at_once, n, 0, tiled=resized.tiling is not None)
        while len(self._sized) >= self.kept:  # first, so that there are never more in memory
            _, last = self._sized.popitem(last=False)
            last.pipeline.close()
        pipeline = own.pipeline.clone(resized)
        found = self._sized[height, width] = Sized(pipeline, Deadlines(pipeline))
        return found

    def enter_child(self) -> None:
        """Make them usable in a child of fork(), as the Sampler's own is."""
        for size, sized in self._sized.items():
            sized.pipeline.backend.enter_child()
            self._sized[size] = Sized(sized.pipeline, Deadlines(sized.pipeline))

    def close(self) -> None:
        """Close them all."""
        found, self._sized = list(self._sized.values()), OrderedDict()
        run_all([sized.pipeline.close for sized in found])
