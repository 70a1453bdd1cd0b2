"""Graphs of a bundle on windows of a canvas: cut, run some at a time, and put together by weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine.backends.base import Backend
from engine.backends.graph import Arrays, Graph
from engine.bundle.canvas import AT_ONCE, Tiling
from engine.bundle.tensors import BATCH
from engine.result import F32


class Tiles:
    """The graphs of a backend for a canvas: `graph(name)(**inputs)` takes and gives whole ones.

    after: called after each call of a graph on so many windows; what it raises ends the run
    """

    def __init__(self, backend: Backend, canvas: Tiling) -> None:
        self.backend, self.canvas = backend, canvas
        self.after: Callable[[int], None] | None = None
        self._chain = backend.chain()  # for its limit: how many entries a call of a plan may have
        self._weights: dict[int, tuple[F32, F32]] = {}

    def limit(self, lanes: int) -> int:
        """The most samples whose windows fit a call."""
        return self._chain.limit(lanes)

    def close(self) -> None:
        """Drop what the limit was asked of; the graphs are the backend's."""
        self._chain.close()

    def graph(self, name: str) -> Callable[..., Arrays]:
        """A graph that takes whole canvases where it has maps, and as it is where it has none."""
        graph, ports = self.backend.graph(name), self.canvas.ports.get(name)  # None: a guide, in the bundle's own size
        return graph if not ports else lambda **arrays: self._run(graph, ports, arrays)

    def weights(self, factor: int) -> tuple[F32, F32]:
        """Of a map: the weight of each pixel of a window, [height, width] of it, and their sums, [height, width] of all."""
        if factor not in self._weights:
            weights, total = self.canvas.weights(factor), np.zeros([factor * side for side in self.canvas.whole], np.float32)
            for top, left in self.canvas.windows:
                self._window(total, factor, top, left)[:] += weights
            self._weights[factor] = weights, total
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
                    sums[port] = np.zeros((n, found.shape[1], *(factor * side for side in self.canvas.whole)), np.float32)
                self._add(sums[port], cast(F32, found), factor, some)
            if self.after is not None:
                self.after(len(some))
        if len(windows) > 1:
            for port, array in sums.items():
                array /= self.weights(ports[port])[1]
        return cast(Arrays, sums)

    def _cut(
        self, array: npt.NDArray[np.generic], factor: int | None, of_samples: bool, windows: list[tuple[int, int]]
    ) -> npt.NDArray[np.generic]:
        """The windows of a map, [windows * n, ...]; anything else of samples once a window, and what is shared as it is."""
        if factor is None:
            return np.concatenate([array] * len(windows)) if of_samples else array
        return np.concatenate([self._window(array, factor, top, left) for top, left in windows])

    def _window(self, array: npt.NDArray[Any], factor: int, top: int, left: int) -> npt.NDArray[Any]:
        """A view of one window of a whole map."""
        height, width = (factor * side for side in self.canvas.window)
        return array[..., factor * top : factor * top + height, factor * left : factor * left + width]

    def _add(self, total: F32, found: F32, factor: int, windows: list[tuple[int, int]]) -> None:
        """total += weights * found, window by window."""
        weighted, n = found * self.weights(factor)[0], len(total)
        for index, (top, left) in enumerate(windows):
            self._window(total, factor, top, left)[:] += weighted[index * n : (index + 1) * n]
