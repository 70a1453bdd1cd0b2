"""Graphs of a bundle on windows of a canvas: cut, run some at a time, and put together by weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt

from engine.backends.base import Backend
from engine.backends.graph import Arrays, Graph
from engine.bundle.canvas import AT_ONCE, Canvas
from engine.bundle.tensors import BATCH
from engine.result import F32


class Tiles:
    """The graphs of a backend for a canvas: `graph(name)(**inputs)` takes and gives whole ones.

    after: called after each call of a graph on so many windows; what it raises ends the run
    """

    def __init__(self, backend: Backend, canvas: Canvas) -> None:
        self.backend, self.canvas = backend, canvas
        self.after: Callable[[int], None] | None = None
        self._limit = backend.chain()  # of a plan: how many entries a call may have
        self._weights: dict[int, F32] = {}

    def limit(self, lanes: int) -> int:
        """The most samples whose windows fit a call."""
        return self._limit.limit(lanes)

    def close(self) -> None:
        """Drop what the limit was asked of; the graphs are the backend's."""
        self._limit.close()

    def graph(self, name: str) -> Callable[..., Arrays]:
        """A graph that takes whole canvases where it has maps, and as it is where it has none."""
        graph, ports = self.backend.graph(name), self.canvas.ports[name]
        return graph if not ports else lambda **arrays: self._run(graph, ports, arrays)

    def weights(self, factor: int) -> F32:
        """The weights of a window of a map."""
        if factor not in self._weights:
            self._weights[factor] = self.canvas.weights(factor)
        return self._weights[factor]

    def _run(self, graph: Graph, ports: dict[str, int], arrays: Arrays) -> Arrays:
        """Every window, those of a call stacked window by window, and their sum by weight."""
        windows, n = self.canvas.windows, max(len(arrays[port]) for port in arrays if port in ports)
        size = max(1, min(AT_ONCE, self.limit(lanes=1)) // n)
        sums: dict[str, F32] = {}
        for begin in range(0, len(windows), size):
            some = windows[begin : begin + size]
            cut = {
                spec.name: self._cut(arrays[spec.name], ports.get(spec.name), spec.shape[0] == BATCH, some)
                for spec in graph.spec.inputs
            }
            for port, found in graph(**cut).items():
                if len(windows) == 1:  # the weights would only round it
                    sums[port] = cast(F32, found.copy())
                    continue
                factor = ports[port]
                if port not in sums:
                    sums[port] = np.zeros(self._whole(found, factor, n), np.float32)
                self._add(sums[port], cast(F32, found), factor, some)
            if self.after is not None:
                self.after(len(some))
        if len(windows) > 1:
            for port, array in sums.items():
                array /= self._total(ports[port])
        return cast(Arrays, sums)

    def _cut(
        self, array: npt.NDArray[np.generic], factor: int | None, of_samples: bool, windows: list[tuple[int, int]]
    ) -> npt.NDArray[np.generic]:
        """The windows of a map, [windows * n, ...]; anything else of samples once a window, and what is shared as it is."""
        if factor is None:
            return np.concatenate([array] * len(windows)) if of_samples else array
        height, width = (factor * side for side in self.canvas.window)
        parts = [
            array[:, :, factor * top : factor * top + height, factor * left : factor * left + width] for top, left in windows
        ]
        return np.concatenate(parts)

    def _whole(self, found: npt.NDArray[np.generic], factor: int, n: int) -> tuple[int, ...]:
        height, width = (begins[-1] + side for begins, side in zip(self._grid, self.canvas.window, strict=True))
        return (n, found.shape[1], factor * height, factor * width)

    @property
    def _grid(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.canvas.rows, self.canvas.columns

    def _add(self, total: F32, found: F32, factor: int, windows: list[tuple[int, int]]) -> None:
        """total += weights * found, window by window."""
        (height, width), n = found.shape[2:], len(total)
        weighted = found * self.weights(factor)
        for index, (top, left) in enumerate(windows):
            down, across = factor * top, factor * left
            total[:, :, down : down + height, across : across + width] += weighted[index * n : (index + 1) * n]

    def _total(self, factor: int) -> F32:
        """The summed weights of each pixel, [height, width]."""
        weights = self.weights(factor)
        sides = (begins[-1] + side for begins, side in zip(self._grid, self.canvas.window, strict=True))
        total = np.zeros([factor * side for side in sides], np.float32)
        for top, left in self.canvas.windows:
            down, across = factor * top, factor * left
            total[down : down + weights.shape[0], across : across + weights.shape[1]] += weights
        return total
