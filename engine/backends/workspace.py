"""Buffers of a chain on the host, for one batch shape: allocated once, overwritten by every run of that shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.result import F32, U8
from engine.solver.table import StepTable

# Up to this many samples, one call on all lanes replaces one a lane. On the CIFAR-10 network (two cores, float32) the two
# ways lay within 5 % of each other at n = 1 and 4; at n = 16 two calls were 10 % faster in ONNX Runtime.
FOLD_LIMIT = 8


class Workspace:
    """x [n, ...]; for several lanes x_in and e [lanes * n, ...]; x0, y and history [3, n, ...] where a table uses them.

    loop: what the native engine prepared for the last table.
    """

    def __init__(self, n: int, lanes: int, shape: tuple[int, int, int]) -> None:
        self.n, self.lanes, self.shape = n, lanes, shape
        self.folded = n <= FOLD_LIMIT
        self.x: F32 = np.zeros((n, *shape), np.float32)
        self.x0: F32 | None = None
        self.y: F32 | None = None
        self.history: F32 | None = None
        self.loop: Any = None
        self._e: F32 | None = None
        self._x_in: F32 | None = None
        self._images: U8 | None = None

    def begin(self, table: StepTable, *, shows_x0: bool) -> None:
        """Room for what this table uses, and for each row's x0 where something looks at it.

        Only what was written is read (`check_table`): nothing is cleared.
        """
        if shows_x0 and self.x0 is None:
            self.x0 = np.empty_like(self.x)
        if self.y is None and table.carries_y:
            self.y = np.empty_like(self.x)
        if self.history is None and table.pushes:
            self.history = np.empty((3, *self.x.shape), np.float32)

    def network_input(self, lanes: int, c_in: float) -> F32:
        """c_in x, once a lane, [lanes * n, ...]; x itself where that is the same."""
        if lanes == 1 and c_in == 1.0:
            return self.x
        x_in = self.x_in
        for lane in range(lanes):
            np.multiply(self.x, np.float32(c_in), out=x_in[lane * self.n : (lane + 1) * self.n])
        return x_in[: lanes * self.n]

    @property
    def e(self) -> F32:
        """Room for the network's output in every lane."""
        if self._e is None:
            self._e = np.empty((self.lanes * self.n, *self.shape), np.float32)
        return self._e

    @property
    def x_in(self) -> F32:
        """Room for the network's input in every lane."""
        if self._x_in is None:
            self._x_in = np.empty((self.lanes * self.n, *self.shape), np.float32)
        return self._x_in

    def images(self, shape: tuple[int, int, int]) -> U8:
        """Room for n images of [C, H, W] as pixels, [n, H, W, C]."""
        if self._images is None:
            channels, height, width = shape
            self._images = np.empty((self.n, height, width, channels), np.uint8)
        return self._images
