"""The chain of the native engine: the host's, with the whole loop in one call where nothing watches it."""

from __future__ import annotations

from typing import cast

import numpy as np

from engine.backends.graph import Arrays
from engine.backends.host import NOISE, HostChain
from engine.backends.native.graph import NativeGraph
from engine.backends.native.loop import Loop
from engine.backends.workspace import Workspace
from engine.kernels.native_library import NONE, Stopped
from engine.request import Request, cancelled
from engine.result import F32, Timings


class NativeChain(HostChain):
    """A `Chain` whose loop is one call of the engine: the same rows in the same order, the same bits."""

    def _loop(self, request: Request, work: Workspace, values: Arrays, embeddings: F32, timings: Timings) -> None:
        table = request.table
        # Noise that is laid out in blocks is not drawn inside that call, nor are a guide and a second network called there.
        apart = self._block is not None and request.noise is None and table.rows[:, NOISE].any()
        if request.watch is not None or table.takes_guide or table.nets is not None or apart:
            super()._loop(request, work, values, embeddings, timings)
            return
        graph = self.backend.graph(self.pipeline.step.graph)
        assert isinstance(graph, NativeGraph), "a native backend's graphs are its own"
        loop: Loop | None = work.loop
        if loop is None or loop.table is not request.table:
            loop = work.loop = Loop(self.pipeline.step, graph.ports, request.table, work)
        embeddings, noise = np.ascontiguousarray(embeddings), request.noise
        noise = None if noise is None else np.ascontiguousarray(noise)
        constants = {port: np.ascontiguousarray(array) for port, array in self._constants(values, work).items()}
        centre = self.pipeline.state.centre
        c = None if centre is None else np.ascontiguousarray(cast(F32, values[centre]))
        loop.feed(embeddings, constants, c, request.seeds if noise is None else None, noise)
        try:
            failed = graph.run_steps(loop.call, request.stop)
        except Stopped as error:
            raise cancelled("stop", request.table, int(loop.call.slice.rows)) from error
        timings.add_steps(loop.step_ms[:])
        timings.update_ms += loop.update_ms.value
        timings.network_calls += len(loop.step_ms)
        if failed != NONE:
            raise self._not_finite(request.table, failed)
