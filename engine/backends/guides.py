"""The guides of a pipeline at work on the host: their tables of timesteps, and the gradient of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from engine.backends.graph import Arrays
from engine.bundle.guides import ENTROPY, G, GuideSpec, guide_of
from engine.bundle.pipeline import ROWS, TIMESTEPS, CallSpec, X
from engine.errors import NumericsError
from engine.request import Request
from engine.result import F32
from engine.solver.guides import scaled_gradient
from engine.solver.table import StepTable


class Guides:
    """Runs the guides of one chain.

    graph: a loaded graph by name; call: one call outside of the loop on values by name; where: backend and precision, for
    messages.
    """

    def __init__(
        self,
        guides: tuple[GuideSpec, ...],
        graph: Callable[[str], Any],
        call: Callable[[CallSpec, Mapping[str, Any]], Arrays],
        where: Callable[[], str],
    ) -> None:
        self._guides, self._graph, self._call, self._where = guides, graph, call, where
        self._table: StepTable | None = None
        self._tables: dict[int, F32] = {}  # of the guides that the table needs, [rows, R], of all its timesteps

    def begin(self, table: StepTable) -> None:
        """Make the tables of timesteps of the guides that these rows take."""
        if self._table is table:
            return
        self._table, self._tables = None, {}
        timesteps = np.ascontiguousarray(table.timesteps, np.int64)
        for index in sorted({guide_of(self._guides, int(t)) for t in timesteps[table.guided]}):
            rows = self._guides[index].rows
            if rows is not None:
                self._tables[index] = cast(F32, self._call(rows, {TIMESTEPS: timesteps})[ROWS])
        self._table = table

    def gradient(
        self, request: Request, i: int, x: F32, v: F32 | None, values: Arrays, mean: Callable[[], F32]
    ) -> F32:
        """The operand g of row i for the samples x [n, C, H, W]; NumericsError names step and sample where it is not finite.

        v: the network's second output; mean: the row's x' without noise and gradient.
        """
        table = request.table
        index = guide_of(self._guides, int(table.timesteps[i]))
        guide, own = self._guides[index], {X: x}
        if guide.rows is not None:
            own[ROWS] = self._tables[index][i : i + 1]
        step = guide.step
        fed = {port: np.ascontiguousarray(own.get(name, values.get(name))) for port, name in step.inputs.items()}
        found = self._graph(step.graph)(**fed)
        given = {name: cast(F32, found[port]) for port, name in step.outputs.items()}
        self._check(request, i, step.graph, given)
        g, entropy = given[G], given.get(ENTROPY)
        return scaled_gradient(table.rows[i], g, v, request.setting.guide_mode, entropy, guide.classes, mean)

    def _check(self, request: Request, i: int, graph: str, given: Mapping[str, F32]) -> None:
        fine = np.logical_and.reduce([np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in given.values()])
        if fine.all():
            return
        table, sample = request.table, request.first + int(np.argmin(fine))
        raise NumericsError(
            f"The guide {graph!r} ({self._where()}) returned NaN or infinity at step {i + 1} of {len(table)} (timestep "
            f"{int(table.timesteps[i])}) for sample {sample}; every value was expected to be finite. Pass a smaller "
            "guide_scale if the images before it had run away; if it persists at guide_scale=0.001, build the bundle again "
            "from the classifier's file."
        )

    def close(self) -> None:
        """Drop the tables."""
        self._table, self._tables = None, {}
