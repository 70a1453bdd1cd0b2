"""Lanes: what each evaluation of the network is bound to. Lane 0 sees the inputs, lane 1 their nulls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.bundle.inputs import null_of
from engine.bundle.pipeline import CallSpec, PipelineSpec

Arrays = dict[str, npt.NDArray[np.generic]]


class Bindings:
    """The null of every value of a pipeline. One that a call has to make is made once and kept: batch 1, by name."""

    def __init__(self, pipeline: PipelineSpec, call: Callable[[CallSpec, Arrays], Arrays]) -> None:
        self._pipeline, self._call = pipeline, call
        self._made: Arrays = {}

    def stacked(self, name: str, values: Arrays, lanes: int) -> npt.NDArray[np.generic]:
        """A value over all lanes, [lanes * n, ...]: itself, then its null in the lanes after the first."""
        value = values[name]
        if lanes == 1:
            return value
        n, sample = len(value), value.shape[1:]
        null = np.broadcast_to(self.null(name, values), (n, *sample))
        return np.concatenate([value, *[null] * (lanes - 1)])

    def null(self, name: str, values: Arrays) -> npt.NDArray[np.generic]:
        """What stands for a value in the null lane, [1 or n, ...]; the value itself where it has no null."""
        if name in self._pipeline.nulls:
            return null_of(values[name].shape[1:], self._pipeline.nulls[name])[None]
        if not self._pipeline.null_is_computed(name):
            return values[name]
        if name not in self._made:
            call = self._pipeline.maker(name)
            assert call is not None
            nulls = {value: self.null(value, values)[:1] for value in call.inputs.values()}
            self._made.update({made: array.copy() for made, array in self._call(call, nulls).items()})
        return self._made[name]
