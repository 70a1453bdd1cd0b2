"""A canvas: a bundle made for one size, as if it were for a larger one, whose graphs run on windows of it.

    window k begins at multiples of the stride, the last one at the canvas's end
    value(pixel) = sum_k w_k v_k(pixel) / sum_k w_k,  w = clip(distance to the window's border / (its size - 1), 0.01, 0.5)

as the reference of latent diffusion samples in tiles: around every call of the network and around the decoder alike. The
noise of a canvas is laid out in blocks of the trained size, each from a stream of its own, so that a pixel's noise stays the
same when the canvas grows at its right or its bottom (engine/solver/noise.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.argument_checks import check_number, check_pair
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import IMAGE, PipelineSpec, Value
from engine.bundle.tensors import Shape
from engine.errors import ArgumentError
from engine.solver.noise import MAX_BLOCKS

F32 = NDArray[np.float32]
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 0.5
MOST_OVERLAP = 0.9
MAX_SIDE = 65_536  # of an image
AT_ONCE = 8  # windows of samples in one call, at most: more fill memory and make no processor faster


@dataclass(frozen=True)
class Canvas:
    """Where the windows lie on a larger state.

    base     the manifest as it is, whose graphs take a window
    overlap  the share of a window that the next one covers
    rows     where windows begin, in pixels of the state from the top; columns: from the left
    ports    {graph: {name in the graph: pixels to one of the state's}} of what is cut into windows, and put together
    """

    base: Manifest
    overlap: float
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    ports: dict[str, dict[str, int]]

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of a window, in pixels of the state."""
        return self.base.pipeline.state.height, self.base.pipeline.state.width

    @property
    def whole(self) -> tuple[int, int]:
        """Height and width of the state."""
        return self.rows[-1] + self.window[0], self.columns[-1] + self.window[1]

    @property
    def windows(self) -> list[tuple[int, int]]:
        """Top and left of every window, row by row."""
        return [(top, left) for top in self.rows for left in self.columns]

    def weights(self, factor: int) -> F32:
        """The weight of each pixel of a window of a map with this factor, float32 [height, width]."""
        height, width = (factor * size for size in self.window)
        down, across = (np.minimum(np.arange(n), np.arange(n)[::-1]) / (n - 1) for n in (height, width))
        nearest = np.minimum(down[:, None], across[None, :])
        return np.clip(nearest, LEAST_WEIGHT, MOST_WEIGHT).astype(np.float32)


def enlarged(manifest: Manifest, size: tuple[int, int], overlap: float) -> tuple[Manifest, Canvas]:
    """The manifest as of a bundle whose images have this height and width, and the windows that its graphs run on.

    overlap: 0 .. 0.9, the share of a window that the next one covers. ArgumentError for a bundle or a size without tiles.
    """
    spec = manifest.pipeline
    overlap = check_number("overlap", overlap, 0.0, MOST_OVERLAP)
    height, width = check_pair("size", size, "two, (height, width)")
    if spec.maps is None:
        raise ArgumentError(
            f"size: found {height} x {width} for a bundle that works in {spec.image_shape[1]} x {spec.image_shape[2]} "
            "alone, as something in it depends on the whole picture; expected no size. Leave it out."
        )
    factor, state = spec.maps[spec.image], spec.state
    rows = _begins(_side("height", height, factor, state.height), state.height, overlap)
    columns = _begins(_side("width", width, factor, state.width), state.width, overlap)
    canvas = Canvas(manifest, overlap, rows, columns, _ports(spec))
    larger = _at(spec, *canvas.whole)
    inputs = tuple(dataclasses.replace(entry, shape=larger.values[entry.name].shape) for entry in manifest.inputs)
    return dataclasses.replace(manifest, inputs=inputs, pipeline=larger), canvas


def _side(name: str, side: int, factor: int, window: int) -> int:
    """A side of the state."""
    most = min(MAX_SIDE // factor, MAX_BLOCKS * window)
    if side % factor or not window <= side // factor <= most:
        nearest = factor * min(max(window, round(side / factor)), most)
        raise ArgumentError(
            f"size: found a {name} of {side}, expected a multiple of {factor} from {factor * window} to {factor * most}; "
            f"the nearest is {nearest}."
        )
    return side // factor


def _begins(side: int, window: int, overlap: float) -> tuple[int, ...]:
    """Where windows begin on a side."""
    stride = max(1, round((1 - overlap) * window))
    return (*range(0, side - window, stride), side - window)


def _at(spec: PipelineSpec, height: int, width: int) -> PipelineSpec:
    """The pipeline with a state of this size."""
    maps = spec.maps or {}

    def grown(name: str, shape: Shape) -> Shape:
        return (*shape[:2], maps[name] * height, maps[name] * width) if name in maps else shape

    image = spec.encoder_image
    return dataclasses.replace(
        spec,
        state=dataclasses.replace(spec.state, height=height, width=width),
        values={name: Value(value.dtype, grown(name, value.shape)) for name, value in spec.values.items()},
        encoder_image=None if image is None else dataclasses.replace(image, shape=grown(IMAGE, image.shape)),
    )


def _ports(spec: PipelineSpec) -> dict[str, dict[str, int]]:
    maps = spec.maps or {}
    return {
        call.graph: {port: maps[name] for port, name in (call.inputs | call.outputs).items() if name in maps}
        for call in spec.calls
    }
