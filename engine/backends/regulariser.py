"""The regulariser of a pipeline at work on the host: its table of timesteps, and the network of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from engine.backends.graph import Arrays
from engine.bundle.pipeline import ROWS, TIMESTEPS, VARIANCE, CallSpec, E, X
from engine.bundle.regulariser import RegulariserSpec
from engine.result import F32
from engine.solver.table import StepTable


class Regulariser:
    """Runs the second network of one chain.

    graph: a loaded graph by name; call: one call outside of the loop on values by name.
    """

    def __init__(
        self,
        spec: RegulariserSpec | None,
        graph: Callable[[str], Any],
        call: Callable[[CallSpec, Mapping[str, Any]], Arrays],
    ) -> None:
        self._spec, self._graph, self._call = spec, graph, call
        self._table: StepTable | None = None
        self._rows: F32 | None = None  # [rows, R]

    @property
    def name(self) -> str:
        """The graph of its step."""
        return "" if self._spec is None else self._spec.step.graph

    def begin(self, table: StepTable) -> None:
        """Make the table of timesteps of the rows that it serves."""
        if self._table is table:
            return
        assert self._spec is not None, "a request for it is refused without one"
        self._table = self._rows = None
        if self._spec.rows is not None:
            timesteps = np.ascontiguousarray(table.timesteps, np.int64)
            self._rows = cast(F32, self._call(self._spec.rows, {TIMESTEPS: timesteps})[ROWS])
        self._table = table

    def evaluate(self, i: int, x: F32) -> tuple[F32, F32 | None]:
        """e of row i for x [n, C, H, W], and the second output where the network has one; valid until the next call."""
        assert self._spec is not None, "a request for it is refused without one"
        step, own = self._spec.step, {X: x}
        if self._rows is not None:
            own[ROWS] = self._rows[i : i + 1]
        found = self._graph(step.graph)(**{port: np.ascontiguousarray(own[name]) for port, name in step.inputs.items()})
        given = {name: found[port] for port, name in step.outputs.items()}
        return cast(F32, given[E]), cast("F32 | None", given.get(VARIANCE))

    def close(self) -> None:
        """Drop the table."""
        self._table = self._rows = None
