"""A canvas: a bundle made for one size, as if it were for another.

Its graphs run on the whole of it, where the bundle says that they can (`multiple` of its pipeline): one call a step,
attention over everything, no borders. Or they run on windows of a larger one:

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
from engine.bundle.graphs import GraphSpec, graph_of
from engine.bundle.limits import MAX_SIDE
from engine.bundle.manifest import Manifest
from engine.bundle.maps import at_size, map_ports, tensors_at
from engine.bundle.pipeline import IMAGE, PipelineSpec, Value
from engine.bundle.tensors import Shape
from engine.errors import ArgumentError
from engine.solver.noise import MAX_BLOCKS

F32 = NDArray[np.float32]
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 0.5
MOST_OVERLAP = 0.9
AT_ONCE = 8  # windows of samples in one call, at most: more fill memory and make no processor faster


@dataclass(frozen=True)
class Canvas:
    """Another size of the state, on the whole of which the graphs run.

    base   the manifest as it is
    whole  height and width of the state, in pixels of it
    ports  {graph: {name in the graph: pixels to one of the state's}} of what lies over the state
    """

    base: Manifest
    whole: tuple[int, int]
    ports: dict[str, dict[str, int]]

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of the bundle's own state."""
        return self.base.pipeline.state.height, self.base.pipeline.state.width

    @property
    def block(self) -> tuple[int, int] | None:
        """The blocks that noise is laid out in (engine/solver/noise.py); None for the bundle's own size."""
        return None if self.whole == self.window else self.window


@dataclass(frozen=True)
class Tiling(Canvas):
    """A larger state, of which the graphs take windows of the bundle's own size.

    overlap  the share of a window that the next one covers
    rows     where windows begin, in pixels of the state from the top; columns: from the left
    """

    overlap: float
    rows: tuple[int, ...]
    columns: tuple[int, ...]

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


def resized(manifest: Manifest, size: tuple[int, int], overlap: float | None) -> tuple[Manifest, Canvas]:
    """The manifest as of a bundle whose images have this height and width, and how its graphs come to be for it.

    overlap: 0 .. 0.9, the share of a window that the next one covers, for windows; None for the whole. ArgumentError for a
    bundle or a size that does not go.
    """
    spec = manifest.pipeline
    if overlap is not None:
        overlap = check_number("overlap", overlap, 0.0, MOST_OVERLAP)
    height, width = check_pair("size", size, "two, (height, width)")
    if spec.maps is None:
        raise ArgumentError(
            f"size: found {height} x {width} for a bundle that works in {spec.image_shape[1]} x {spec.image_shape[2]} "
            "alone, as something in it depends on the whole picture; expected no size. Leave it out."
        )
    factor, state, step = spec.maps[spec.image], spec.state, 1 if overlap is not None else spec.multiple
    if step is None:
        raise ArgumentError(
            f"size: found {height} x {width} and no overlap for a bundle whose graphs take {spec.image_shape[1]} x "
            f"{spec.image_shape[2]} alone; expected an overlap, for tiles of that size. Pass overlap=0.5 too."
        )
    high = _side("height", height, factor, step, state.height, least=step if overlap is None else state.height)
    wide = _side("width", width, factor, step, state.width, least=step if overlap is None else state.width)
    whole = high, wide
    larger = _at(spec, *whole)
    inputs = tuple(dataclasses.replace(entry, shape=larger.values[entry.name].shape) for entry in manifest.inputs)
    ports = map_ports(spec)
    found = dataclasses.replace(manifest, inputs=inputs, pipeline=larger)
    if overlap is None:
        graphs = {key: _graph_at(graph, ports.get(graph_of(key), {}), whole) for key, graph in manifest.graphs.items()}
        return dataclasses.replace(found, graphs=graphs), Canvas(manifest, whole, ports)
    rows, columns = _begins(high, state.height, overlap), _begins(wide, state.width, overlap)
    return found, Tiling(manifest, whole, ports, overlap, rows, columns)


def largest(manifest: Manifest, limit: tuple[int, int], overlap: float | None) -> tuple[int, int]:
    """The largest size whose sides are not above these, as `resized` takes it; ArgumentError where there is none."""
    spec = manifest.pipeline
    step = spec.multiple if overlap is None else 1
    if spec.maps is not None and step is not None:
        unit, own = spec.maps[spec.image] * step, (spec.state.height, spec.state.width)
        most = (min(MAX_SIDE, MAX_BLOCKS * side * spec.maps[spec.image]) for side in own)
        height, width = (min(*both) // unit * unit for both in zip(limit, most, strict=True))
        limit = height, width
    resized(manifest, limit, overlap)
    return limit


def _side(name: str, side: int, factor: int, step: int, own: int, least: int) -> int:
    """A side of the state, for one of the image."""
    most = min(MAX_SIDE // factor, MAX_BLOCKS * own) // step * step
    unit = factor * step
    if side % unit or not least <= side // factor <= most:
        nearest = unit * min(max(least // step, round(side / unit)), most // step)
        raise ArgumentError(
            f"size: found a {name} of {side}, expected a multiple of {unit} from {factor * least} to {factor * most}; "
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
        return at_size(shape, maps.get(name), (height, width))

    image = spec.encoder_image
    return dataclasses.replace(
        spec,
        state=dataclasses.replace(spec.state, height=height, width=width),
        values={name: Value(value.dtype, grown(name, value.shape)) for name, value in spec.values.items()},
        encoder_image=None if image is None else dataclasses.replace(image, shape=grown(IMAGE, image.shape)),
    )


def _graph_at(graph: GraphSpec, ports: dict[str, int], whole: tuple[int, int]) -> GraphSpec:
    """A graph's entry for a state of this size."""
    inputs, outputs = (tensors_at(tensors, ports, whole) for tensors in (graph.inputs, graph.outputs))
    return dataclasses.replace(graph, inputs=inputs, outputs=outputs)
