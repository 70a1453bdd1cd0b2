"""Lanes: what each evaluation of the network is bound to. Lane 0 sees the inputs, lane 1 their nulls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.bundle.inputs import null_of
from engine.bundle.pipeline import CallSpec, PipelineSpec

Arrays = dict[str, npt.NDArray[np.generic]]
KEPT_SHAPES = 4  # of a server's few lengths of what is free; each call's nulls are kept of so many


class Bindings:
    """The null of every value of a pipeline.

    What calls make of nulls alone (such as the keys and values of an empty text) is made once for each shape, on one sample,
    and kept for all requests; what they make of nulls and of values that have none is each sample's own, and made once a
    request.

    call: runs one call of the pipeline on values by name; its results are kept, and so no buffers of a graph.
    """

    def __init__(self, pipeline: PipelineSpec, call: Callable[[CallSpec, Arrays], Arrays]) -> None:
        self._pipeline, self._call = pipeline, call
        self._kept: OrderedDict[tuple[object, ...], Arrays] = OrderedDict()
        self._most = KEPT_SHAPES * len(pipeline.before)
        self._values: Arrays | None = None  # of the request that `_own` is for
        self._own: Arrays = {}

    def stacked(self, name: str, values: Arrays, lanes: int) -> npt.NDArray[np.generic]:
        """A value over all lanes, [lanes * n, ...]: itself, then its null in the lanes after the first."""
        value = values[name]
        if lanes == 1:
            return value
        null = np.broadcast_to(self.null(name, values), value.shape)
        return np.concatenate([value, *[null] * (lanes - 1)])

    def null(self, name: str, values: Arrays) -> npt.NDArray[np.generic]:
        """What stands for a value in the null lane, [1 or n, ...]; the value itself where it has no null."""
        if name in self._pipeline.nulls:
            return null_of(values[name].shape[1:], self._pipeline.nulls[name])[None]
        call = self._pipeline.maker(name)
        if call is None or not self._pipeline.null_is_computed(name):
            return values[name]
        return (self._alone(call, values) if self._is_alone(name) else self._of_request(call, values))[name]

    def _is_alone(self, name: str) -> bool:
        """Whether a value's null comes from nulls only."""
        call = self._pipeline.maker(name)
        return name in self._pipeline.nulls or (call is not None and all(map(self._is_alone, call.inputs.values())))

    def _alone(self, call: CallSpec, values: Arrays) -> Arrays:
        nulls = {name: self.null(name, values) for name in call.inputs.values()}
        key = (call.graph, *call.outputs.values(), *(array.shape for array in nulls.values()))  # free dimensions vary
        if key not in self._kept:
            self._kept[key] = self._call(call, nulls)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _of_request(self, call: CallSpec, values: Arrays) -> Arrays:
        if self._values is not values:
            self._values, self._own = values, {}
        if not all(made in self._own for made in call.outputs.values()):
            nulls = {name: np.broadcast_to(self.null(name, values), values[name].shape) for name in call.inputs.values()}
            self._own.update(self._call(call, nulls))
        return self._own
