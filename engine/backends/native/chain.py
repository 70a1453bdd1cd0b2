"""The chain of the native engine: the host's, with the whole loop in one call where nothing watches it."""

from __future__ import annotations

from typing import cast

import numpy as np

from engine.backends.graph import Arrays
from engine.backends.host import C_IN, PUSH, HostChain
from engine.backends.native.graph import NativeGraph
from engine.backends.native.loop import Loop
from engine.backends.workspace import Workspace, Y
from engine.bundle.pipeline import ROWS, VARIANCE, E, X
from engine.request import Request
from engine.result import F32, Timings


class NativeChain(HostChain):
    """A `Chain` whose loop is one call of the engine: the same rows in the same order, the same bits."""

    def _loop(self, request: Request, work: Workspace, values: Arrays, embeddings: F32, timings: Timings) -> None:
        if request.watch is not None:
            super()._loop(request, work, values, embeddings, timings)
            return
        graph = cast(NativeGraph, self.backend.graph(self.pipeline.step.graph))
        times = graph.run_steps(self._call_of(request, work, values, embeddings))
        for i, milliseconds in enumerate(times.network_ms):
            timings.add_step(i, milliseconds)
        timings.update_ms += times.update_ms
        timings.network_calls += len(times.network_ms)
        if times.failed_step is not None:
            raise self._not_finite(request.table, times.failed_step)

    def _call_of(self, request: Request, work: Workspace, values: Arrays, embeddings: F32) -> Loop:
        step, table, centre = self.pipeline.step, request.table, self.pipeline.state.centre
        ports = {value: port for port, value in (*step.inputs.items(), *step.outputs.items())}
        copies = work.lanes > 1 or bool((table.rows[:, C_IN] != 1.0).any())
        return Loop(
            x_port=ports[X],
            row_port=ports.get(ROWS),
            e_port=ports[E],
            v_port=ports.get(VARIANCE),
            constants={port: np.ascontiguousarray(array) for port, array in self._constants(values, work).items()},
            embeddings=np.ascontiguousarray(embeddings),
            rows=np.ascontiguousarray(table.rows),
            weights=np.ascontiguousarray(table.weights),
            x=work.x,
            x_in=work.x_in if copies else None,
            e=work.e,
            v=np.empty_like(work.e) if VARIANCE in ports else None,
            centre=None if centre is None else np.ascontiguousarray(cast(F32, values[centre])),
            y=np.empty_like(work.x) if table.rows[:, Y].any() else None,
            history=np.empty((3, *work.x.shape), np.float32) if table.rows[:, PUSH].any() else None,
            seeds=request.seeds if request.noise is None else None,
            noise=None if request.noise is None else np.ascontiguousarray(request.noise),
        )
