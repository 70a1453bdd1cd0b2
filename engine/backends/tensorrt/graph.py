"""One graph of a bundle in TensorRT, over arrays on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.graph import Arrays, Graph
from engine.backends.tensorrt.plan import Execution, Plan
from engine.cleanup import noting, undo
from engine.device.context import Device, release_all
from engine.device.memory import DeviceBlock, PinnedBlock, Spec
from engine.device.stream import Stream
from engine.forks import CUDA

# What the library's bindings raise beside returning None and False.
NATIVE_FAILURES = (RuntimeError, TypeError, ValueError)


class TensorRtGraph(Graph):
    """A plan with a context of its own for arrays on the host; its memory is allocated with the first call of a shape."""

    _failures = NATIVE_FAILURES
    _one_process = CUDA

    def __init__(self, plan: Plan, device: Device) -> None:
        super().__init__(plan.name, plan.spec, plan.precision, 1)
        self.backend = plan.backend  # of this graph: one class for both libraries
        self.plan, self.device = plan, device
        self._call: _Call | None = None

    def _bind(self, outputs: Arrays) -> None:
        """Another shape: what the last one used is given back, and made anew with the inputs' shapes in `_run`."""
        self._drop()

    def _run(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        with self.device.current():
            if self._call is None:
                self._call = _Call(self.plan, self.device, arrays, self._outputs)
            try:
                self._call.run(arrays, self._outputs)
            except BaseException as error:
                with noting(error):
                    self._call.stream.synchronize()  # what still runs writes into memory that is about to be given back
                with noting(error):
                    self._drop()
                raise

    def _drop(self) -> None:
        call, self._call = self._call, None
        if call is not None and not self.device.driver.gone:
            with self.device.current():
                call.close()

    def _release(self) -> None:
        try:
            self._drop()
            self.plan = None  # type: ignore[assignment]  # closed
        finally:
            self.device.release()

    def _twin(self) -> TensorRtGraph:
        return TensorRtGraph(self.plan, self.device.share())


class _Call:
    """Stream, memory and context of one shape of a single graph."""

    def __init__(self, plan: Plan, device: Device, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        self.device = device
        specs: dict[str, Spec] = {name: (array.shape, array.dtype) for name, array in {**inputs, **outputs}.items()}
        for name, array in inputs.items():
            plan.check_shape(name, array.shape)
        self._owned: list[Any] = []
        with undo(self.close):
            self.stream = self._own(Stream(device))
            scratch: dict[str, Spec] = {"scratch": ((plan.scratch,), np.uint8)}
            # Our own array first: a tensor may be called as it is.
            self.scratch = self._own(DeviceBlock(device, scratch, f"the graph {plan.name}", self.stream.handle))
            self.arena = self._own(DeviceBlock(device, specs, f"the graph {plan.name}", self.stream.handle))
            self.pinned = self._own(PinnedBlock(device, specs, f"the graph {plan.name}"))
            tensors = {name: (self.arena[name].address, self.arena[name].shape) for name in specs}
            self.execution = self._own(Execution(plan, self.scratch.address, tensors))

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        stream = self.stream.handle
        for name, array in inputs.items():
            self.pinned.array(name)[...] = array
            slot = self.pinned[name]
            self.device("cuMemcpyHtoDAsync", self.arena[name].address, slot.address, slot.nbytes, stream)
        self.execution.enqueue(stream)
        for name in outputs:
            slot = self.pinned[name]
            self.device("cuMemcpyDtoHAsync", slot.address, self.arena[name].address, slot.nbytes, stream)
        self.stream.synchronize()
        for name, array in outputs.items():
            array[...] = self.pinned.array(name)

    def close(self) -> None:
        owned, self._owned = self._owned, []
        release_all(self.device, [item.close for item in reversed(owned)])

    def _own(self, item: Any) -> Any:
        self._owned.append(item)
        return item
