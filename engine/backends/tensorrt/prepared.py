"""What runs of one shape use again and again: one allocation with all arrays, contexts, events, a captured graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.backends.tensorrt.plan import Execution, Plan
from engine.backends.tensorrt.shape import Wiring, key, null_key, result_key, spare
from engine.bundle.pipeline import ROWS, TIMESTEPS, VARIANCE, CallSpec, E, X
from engine.cleanup import undo
from engine.device.context import release_all
from engine.device.memory import DeviceBlock, PinnedBlock
from engine.device.stream import Event, Replay, Stream
from engine.errors import BackendError

STAGES = ("begin", "before", "rows", "start", "after", "post")  # events beside those of the rows
Tensors = dict[str, tuple[int, tuple[int, ...]]]


class Guarded(NamedTuple):
    """A call outside the loop with the arrays that it makes: (address, number of floats) of each."""

    number: int
    run: Execution
    made: tuple[tuple[int, int], ...]


class Prepared:
    """One shape of a pipeline on a device.

    arena          all arrays on the device; its first part mirrors `up`
    up, down       pinned: what is uploaded, what is downloaded
    before, after  calls outside the loop, in their order; `rows` makes the embeddings
    steps          {active lanes: the step's network over so many}
    replay         the captured graph, once there is one; `refused` says why there is none, once that is known
    """

    def __init__(
        self,
        wiring: Wiring,
        plans: Mapping[str, Plan],
        null: Callable[[str], npt.NDArray[Any]],
        stream: Stream,
        scratch: int,
    ) -> None:
        self.wiring, self.shape, self.device = wiring, wiring.shape, stream.device
        self.replay: Replay | None = None
        self.refused: str | None = None
        self._plans, self._scratch, self._stream = plans, scratch, stream
        self._owned: list[Any] = []
        with undo(self.close):
            what = f"a run of {self.shape.n} samples and {self.shape.rows} rows"
            first = wiring.uploaded()
            self.arena = self._own(DeviceBlock(self.device, first | wiring.kept(), what, stream.handle))
            self.up = self._own(PinnedBlock(self.device, first, what))
            self.down = self._own(PinnedBlock(self.device, wiring.downloaded(), what))
            self._fill_nulls(null)
            self._open_calls()
            self.events: dict[str | int, Event] = {
                name: self._own(Event(self.device)) for name in (*STAGES[:4], *range(self.shape.rows), *STAGES[4:])
            }

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def address(self, name: str) -> int:
        """Where one of our own arrays lies on the device; 0 for one that this shape does not have."""
        return self.arena[name].address if name in self.arena else 0

    def value(self, name: str | None, lane: int = 0) -> int:
        """Where a value of the pipeline lies; 0 for one that this shape does not have."""
        if name is None or name == X:
            return 0 if name is None else self.address("x")
        return self.arena[key(name)].at(lane * self.shape.n) if key(name) in self.arena else 0

    def result(self, name: str) -> int:
        """Where a result lies."""
        return self.address(name) if result_key(name) == name else self.value(name)

    @property
    def network_input(self) -> str:
        """The array that the network is given."""
        return "x_in" if self.shape.scaled else "x"

    @property
    def copies(self) -> tuple[int, int]:
        """Where the update copies x to for the lanes that do not read x itself, and how many copies that is."""
        if self.shape.scaled:
            return self.address("x_in"), self.shape.lanes
        if self.shape.lanes == 1:
            return 0, 0
        return self.arena["x"].at(self.shape.n), self.shape.lanes - 1

    @property
    def row_width(self) -> int:
        """Elements of one row of embeddings, all lanes together."""
        return self.arena["row"].size if "row" in self.arena else 0

    # ---- nulls -------------------------------------------------------------------------------------------------------

    def _fill_nulls(self, null: Callable[[str], npt.NDArray[Any]]) -> None:
        """Nulls that never change are written here, once: those of what is uploaded into `up`, the others at once."""
        wiring, n = self.wiring, self.shape.n
        for name in filter(wiring.has_fixed_null, wiring.stacked):
            if key(name) in self.up:
                self.up.array(key(name))[n:] = null(name)
            else:
                self._write(name, self.value(name, 1), n * (self.shape.lanes - 1), null(name))
        taken = {name for call in wiring.null_calls for name in call.inputs.values() if wiring.has_fixed_null(name)}
        for name in sorted(taken):
            self._write(name, self.address(null_key(name)), n, null(name))

    def _write(self, name: str, target: int, entries: int, values: npt.NDArray[Any]) -> None:
        shape = (entries, *self.wiring.sample(name))
        lanes = PinnedBlock(self.device, {"null": (shape, self.wiring.array(name)[1])}, f"the null of {name}")
        try:
            lanes.array("null")[...] = values
            source = lanes["null"]
            self.device("cuMemcpyHtoDAsync", target, source.address, source.nbytes, self._stream.handle)
            self._stream.synchronize()
        finally:
            lanes.close()

    @property
    def lane_copies(self) -> list[tuple[int, int, int]]:
        """(target, source, bytes): what fills the lanes after the first in every run, each sample's null or its value."""
        shape, found = self.shape, []
        for name in self.wiring.stacked:
            if not self.wiring.has_fixed_null(name):
                own = self.wiring.has_own_null(name)
                source = self.address(null_key(name)) if own else self.value(name)
                nbytes = self.arena[key(name)].nbytes // shape.lanes
                found += [(self.value(name, lane), source, nbytes) for lane in range(1, shape.lanes)]
        return found

    # ---- calls -------------------------------------------------------------------------------------------------------

    def _open_calls(self) -> None:
        wiring, spec = self.wiring, self.wiring.pipeline
        numbers = {id(call): number for number, call in enumerate((*spec.before, *spec.after))}
        self.before = [self._guarded(call, numbers[id(call)]) for call in wiring.before]
        self.nulls = [self._guarded(call, numbers[id(call)], null=True) for call in wiring.null_calls]
        self.after = [self._guarded(call, numbers[id(call)]) for call in spec.after]
        self.rows = self._execution(spec.rows, self._rows())
        self.steps = {lanes: self._execution(spec.step, self._step(lanes)) for lanes in sorted(set(self.shape.active))}

    @property
    def runs(self) -> dict[str, Execution]:
        """Every context, one a graph at least: what a capture asks for."""
        outside = {run.plan.name: run for _, run, _ in (*self.before, *self.nulls, *self.after)}
        loop = {run.plan.name: run for run in (self.rows, *self.steps.values())}
        return outside | loop

    def _execution(self, call: CallSpec, tensors: Tensors) -> Execution:
        return self._own(Execution(self._plans[call.graph], self._scratch, tensors))

    def _guarded(self, call: CallSpec, number: int, *, null: bool = False) -> Guarded:
        """A call over n samples, or over their nulls."""
        wiring = self.wiring
        tensors: Tensors = {}
        made = []
        for port, name in call.inputs.items():
            at = self.address(null_key(name)) if null and wiring.pipeline.has_null(name) else self.value(name)
            if not at:
                raise BackendError(f"the call of {call.graph!r} needs {name!r}: found none, expected it; pass it by name")
            tensors[port] = at, (self.shape.n, *wiring.sample(name))
        for port, name in call.outputs.items():
            target = spare(call, port) if name in wiring.there else key(name)
            shape = (self.shape.n, *wiring.sample(name))
            tensors[port] = self.address(wiring.null_output(call, port) if null else target), shape
            if wiring.array(name)[1] == np.float32:
                made.append((tensors[port][0], math.prod(shape)))
        return Guarded(number, self._execution(call, tensors), tuple(made))

    def _rows(self) -> Tensors:
        """timesteps, and values of every lane, to the embeddings of all rows."""
        spec = self.wiring.pipeline
        table = self.arena["rows"]
        shape = table.shape if spec.per_sample_rows else (table.shape[0], table.shape[2])
        tensors: Tensors = dict.fromkeys(spec.rows.outputs, (table.address, shape))
        for port, name in spec.rows.inputs.items():
            slot = self.arena[TIMESTEPS if name == TIMESTEPS else key(name)]
            tensors[port] = slot.address, slot.shape
        return tensors

    def _step(self, lanes: int) -> Tensors:
        """x and values of the first lanes to their e, and to the second output."""
        spec, entries = self.wiring.pipeline, lanes * self.shape.n
        names = {X: self.network_input, ROWS: "row", E: "e", VARIANCE: "v"}
        tensors: Tensors = {}
        for port, name in (*spec.step.inputs.items(), *spec.step.outputs.items()):
            slot = self.arena[names.get(name, key(name))]
            whole = name == ROWS and not spec.per_sample_rows
            tensors[port] = slot.address, slot.shape if whole else (entries, *slot.shape[1:])
        return tensors

    # ---- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give everything back, the graph before what it was captured from."""
        owned, self._owned = self._owned, []
        steps = [self.replay.close] if self.replay is not None else []
        self.replay = None
        release_all(self.device, [*steps, *(item.close for item in reversed(owned))])

    def _own(self, item: Any) -> Any:
        self._owned.append(item)
        return item
