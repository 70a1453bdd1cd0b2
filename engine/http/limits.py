"""How much clients may ask of a server, and how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.bundle.canvas import largest
from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError

VALUES = 50_000  # of a body beside the bundle's inputs: settings, seeds, lists of timesteps
FREE = 4096  # what a free dimension counts for in `values`
RANGES = {
    "max_batch": (1, 4096), "max_pixels": (1, 178_956_970), "max_queue": (1, 100_000), "max_body": (1024, 2**31),
    "timeout": (0.05, 86_400),
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """max_batch   samples of a request, and of a run
    max_steps   network calls of a request
    max_pixels  of a picture that is sent, before it is decoded
    max_queue   requests that are read or wait for a run; the next one is answered 429
    max_body    bytes of a request's body
    max_size    height and width that the `size` of a request may have; None: it may have none
    timeout     seconds that a body may take to arrive, and then its answer
    """

    max_batch: int = 16
    max_steps: int = 100
    max_pixels: int = 16_000_000
    max_queue: int = 64
    max_body: int = 8 * 2**20
    timeout: float = 30.0
    max_size: tuple[int, int] | None = None

    def check(self) -> None:
        """ArgumentError names the first that is out of range; `max_steps` is a matter of the bundle."""
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ArgumentError(
                    f"{name}: found {getattr(self, name)}, expected {low} to {high}; choose another "
                    f"--{name.replace('_', '-')}"
                )

    def values(self, manifest: Manifest, inputs: Sequence[InputSpec]) -> int:
        """The most numbers in a body with these inputs: parsing more would hold every other client up."""
        _, height, width = manifest.pipeline.image_shape
        high, wide = self.max_size or (height, width)
        grown = max(1, math.ceil(high / height) * math.ceil(wide / width))
        sizes = [math.prod(size if isinstance(size, int) else FREE for size in spec.sample) for spec in inputs]
        return VALUES + grown * self.max_batch * sum(sizes)

    def largest(self, bundle: Bundle) -> tuple[int, int] | None:
        """The largest size that a request may ask for; None where it may ask for none, ArgumentError where there is none
        that this bundle has."""
        return None if self.max_size is None else largest(bundle.base.manifest, self.max_size, bundle.resizing[1])
