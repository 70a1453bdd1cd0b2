"""The chain on a GPU: the loop of engine/backends/host.py, put into a stream, or replayed as one captured graph.

A shape's first run is put into the stream call by call, then captured; from the second on the host makes one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.base import Backend
from engine.backends.host import HostChain
from engine.backends.tensorrt.enqueue import Enqueued
from engine.backends.tensorrt.kernels import BAD_WORD, GpuKernels, control_block
from engine.backends.tensorrt.plan import Plan
from engine.backends.tensorrt.prepared import Prepared
from engine.backends.tensorrt.shape import Shape, Wiring, key, result_key, shape_of
from engine.bundle.tensors import BATCH
from engine.cleanup import noting, undo
from engine.device.arrays import Allocation, DeviceArray, borrow
from engine.device.context import Device, release_all
from engine.device.memory import DeviceBlock
from engine.device.stream import Lru, Stream, capture
from engine.errors import BackendError, Cancelled, CaptureError, NumericsError
from engine.kernels import cuda_module
from engine.request import Outcome, Request, cancelled
from engine.result import F32, U8, StepInfo, Timings

KEPT_SHAPES = 4  # each with its buffers, contexts and graph: enough for a server's few, bounded over any number


class GpuChain:
    """Runs requests over the plans of one bundle on one device. A `DeviceChain`.

    One activation memory serves all plans of all shapes: on one stream no two of them run at once.
    """

    def __init__(self, backend: Backend, plans: Mapping[str, Plan], device: Device) -> None:
        self.backend, self.plans = backend, plans
        self.pipeline = backend.bundle.manifest.pipeline
        self.device = device.share()
        self.captures = True  # False: call by call always, which only a measurement wants
        self._nulls = HostChain(backend)  # whose calls make the nulls that never change
        self._shapes: Lru[Prepared] = Lru(KEPT_SHAPES)
        self._owned: list[Any] = []
        with undo(self.close), device.current():
            self.stream = self._own(Stream(device))
            self.kernels = self._own(GpuKernels(device))
            scratch = {"scratch": ((max(plan.scratch for plan in plans.values()),), np.uint8)}
            self._scratch = self._own(DeviceBlock(device, scratch, "activations", self.stream.handle))

    def limit(self, lanes: int) -> int:
        """The most samples that a request may have: the step, and rows of each sample, take all lanes in one batch.

        BackendError where not even one sample fits.
        """
        spec = self.pipeline
        calls = [(call, 1) for call in (*spec.before, *spec.after)] + [(spec.rows, lanes), (spec.step, lanes)]
        limits = [
            self.plans[call.graph].room(tensor.name, tensor.shape.index(BATCH), entries)
            for call, entries in calls
            for tensor in self.plans[call.graph].spec.inputs
            if BATCH in tensor.shape
        ]
        return min(limits)

    def run(self, request: Request, timings: Timings) -> Outcome:
        """Run a request; the results are in pinned memory until the next one."""
        with self._running(request) as prepared:
            self._run(prepared, request, timings)
            down = prepared.down
            values: dict[str, npt.NDArray[Any]] = {}
            for name in prepared.wiring.results():
                there = request.inputs.get(name, request.given.get(name))
                if isinstance(there, np.ndarray):
                    values[name] = there
                    continue
                self._download(prepared, result_key(name), prepared.result(name))
                values[name] = down.array(result_key(name))
            self._finish(prepared, request, timings)
        return Outcome(images=values.pop("images"), x=values.pop("x"), values=values)

    def results(self, request: Request) -> dict[str, Any]:
        """Room on the device for the results of a request, which the caller owns."""
        specs = Wiring(self.pipeline, shape_of(request, self.pipeline)).results()
        with self.device.current():
            allocation = Allocation(self.device, specs, self.stream.handle)
        return {name: allocation.array(name) for name in specs}

    def run_into(self, request: Request, timings: Timings, into: Mapping[str, Any]) -> None:
        """Run a request and leave the results in `into`, complete when this returns."""
        with self._running(request) as prepared:
            self._run(prepared, request, timings)
            for name, array in into.items():
                source = prepared.result(name)
                self.device("cuMemcpyDtoDAsync", array.address, source, array.nbytes, self.stream.handle)
            self._finish(prepared, request, timings)

    def borrow(self, array: Any, name: str) -> DeviceArray:
        """A caller's device array, of a declared input or x_T; our stream waits until it has been written."""
        value = self.pipeline.values.get(name)
        with self.device.current():
            return borrow(array, name, self.device, self.stream, "float32" if value is None else value.dtype)

    def wait_for(self, stream: int) -> None:
        """Start nothing before what was enqueued in `stream` until now is done."""
        with self.device.current():
            self.stream.wait_for(stream)

    def close(self) -> None:
        """Give everything back, the device last."""
        owned, self._owned, self.plans = self._owned, [], {}
        if self.device is None:
            return
        device, self.device = self.device, None  # type: ignore[assignment]  # closed
        try:
            if not device.driver.gone:
                with device.current():
                    closing = [item.close for item in reversed(owned)]
                    release_all(device, [lambda: self._shapes.close(device), *closing])
        finally:
            device.release()

    # ---- a run -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _running(self, request: Request) -> Iterator[Prepared]:
        """The prepared shape of a request, with the context current. After a failure nothing is left running."""
        with self.device.current():
            shape = shape_of(request, self.pipeline)
            prepared = self._shapes.get(shape, lambda: self._prepare(shape))
            try:
                yield prepared
            except (NumericsError, Cancelled):
                raise  # the device did all that it was asked to
            except BaseException as error:
                self._settle(error)
                # What failed half-way is made anew by the next run.
                with noting(error):
                    self._shapes.drop(shape)
                raise

    def _prepare(self, shape: Shape) -> Prepared:
        wiring = Wiring(self.pipeline, shape)

        def null(name: str) -> npt.NDArray[Any]:
            return self._nulls.bindings.null(name, wiring.blank())

        return Prepared(wiring, self.plans, null, self.stream, self._scratch.address)

    def _settle(self, error: BaseException) -> None:
        """Wait for what is still running: it writes into memory that is about to be given back."""
        with noting(error):
            self.stream.synchronize()

    def _run(self, prepared: Prepared, request: Request, timings: Timings) -> None:
        self._upload(prepared, request)
        timings.network_calls += prepared.shape.rows
        calls = Enqueued(prepared, self.kernels, self.stream)
        if request.watch is not None:
            timings.launch = "plain"
            self._watched(prepared, calls, request)
        elif self.captures and prepared.replay is not None:
            timings.launch = "graph"
            prepared.replay.launch(self.stream)
        else:
            timings.launch = f"plain: {prepared.refused}" if prepared.refused else "plain"
            calls.all()

    def _finish(self, prepared: Prepared, request: Request, timings: Timings) -> None:
        """Wait for the end, read the NaN guard and the times, and capture what is not captured yet."""
        self._download(prepared, "control", prepared.address("control"))
        self.stream.synchronize()
        self._guard(prepared, request)
        _book(prepared, timings)
        if self.captures and request.watch is None and prepared.replay is None and prepared.refused is None:
            self._capture(prepared)

    def _upload(self, prepared: Prepared, request: Request) -> None:
        """Everything that this run does not share with others of its shape: one copy from pinned memory."""
        table, up = request.table, prepared.up
        given = {
            "control": control_block(len(table), table.start),
            "coefficients": table.rows,
            "weights": table.weights,
            "timesteps": table.timesteps,
            "seeds": request.seeds,
            "x_T": request.x_T,
            "noise": request.noise,
            "start": request.start,
        }
        given |= {key(name): array for name, array in {**request.inputs, **request.given}.items()}
        for name, array in given.items():
            if isinstance(array, np.ndarray):
                up.array(name)[: _entries(name, array, prepared)] = array
        stream = self.stream.handle
        self.device("cuMemcpyHtoDAsync", prepared.arena.address, up.address, up.nbytes, stream)
        for name, array in given.items():
            if isinstance(array, DeviceArray):
                for i in range(_entries(name, array, prepared) // len(array)):  # one sample for all is copied for each
                    target = prepared.arena[name].at(i * len(array))
                    self.device("cuMemcpyDtoDAsync", target, array.address, array.nbytes, stream)

    def _download(self, prepared: Prepared, name: str, source: int) -> None:
        slot = prepared.down[name]
        self.device("cuMemcpyDtoHAsync", slot.address, source, slot.nbytes, self.stream.handle)

    def _capture(self, prepared: Prepared) -> None:
        """Capture the chain for the next run of this shape, or note why that cannot be."""
        reluctant = [name for name, run in prepared.runs.items() if not run.capturable(self.stream.handle)]
        if reluctant:
            prepared.refused = f"{self.backend.NAME} does not allow capture of {', '.join(reluctant)}"
            return
        try:
            calls = Enqueued(prepared, self.kernels, self.stream, capturing=True)
            prepared.replay = capture(self.stream, calls.all)
        except CaptureError as error:
            prepared.refused = str(error)

    def _watched(self, prepared: Prepared, calls: Enqueued, request: Request) -> None:
        """The chain with a look at the host after every row."""
        calls.begin()
        for i, t in enumerate(request.table.timesteps):
            calls.row(i)
            for name in ("control", "x", "x0"):
                self._download(prepared, name, prepared.address(name))
            self.stream.synchronize()
            self._guard(prepared, request)
            _report(prepared, request, i, int(t), lambda x0: self._preview(prepared, calls, request))
        calls.end()

    def _preview(self, prepared: Prepared, calls: Enqueued, request: Request) -> U8:
        """The images of the row that was just shown: x0 takes the place of x for the calls after the loop, and e, which the
        next row overwrites, keeps x meanwhile."""
        x, x0, e = (prepared.address(name) for name in ("x", "x0", "e"))
        nbytes = prepared.down["x0"].nbytes

        def copy(target: int, source: int) -> None:
            self.device("cuMemcpyDtoDAsync", target, source, nbytes, self.stream.handle)

        with self.device.current():
            copy(e, x)
            copy(x, x0)
            calls.end()
            for name in ("control", "images"):
                self._download(prepared, name, prepared.address(name))
            copy(x, e)
            self.stream.synchronize()
        self._guard(prepared, request)
        return prepared.down.array("images").copy()

    def _guard(self, prepared: Prepared, request: Request) -> None:
        """NumericsError with graph and step when the device met NaN or infinity."""
        bad = int(prepared.down.array("control")[BAD_WORD])
        if bad == 0:
            return
        where, rows, spec = f"{self.backend.NAME}, precision {self.backend.precision}", prepared.shape.rows, self.pipeline
        if bad in (cuda_module.BAD_OVERRUN, cuda_module.BAD_FULL_ROW):
            raise BackendError(
                f"{where}: found a step table other than the one of {rows} rows that was uploaded, expected that one; the "
                f"device's memory was overwritten by another kernel: run the process under compute-sanitizer"
            )
        graph, when = spec.step.graph, f"at step {bad} of {rows}"
        if bad <= rows:
            when += f" (timestep {int(request.table.timesteps[bad - 1])})"
        else:
            outside = (*spec.before, *spec.after)
            call = spec.rows if bad == cuda_module.BAD_ROWS else outside[bad - cuda_module.BAD_CALL]
            graph, when = call.graph, "outside the loop"
        raise NumericsError(
            f"The graph {graph!r} ({where}) returned NaN or infinity {when}; every value was expected to be finite. Open "
            f"the bundle on a float32 backend (backend='openvino', precision='f32'); if it persists, check the inputs, x_T "
            f"and noise you passed, and build the bundle again from its checkpoint."
        )

    def _own(self, item: Any) -> Any:
        self._owned.append(item)
        return item


def _entries(name: str, array: Any, prepared: Prepared) -> int:
    """How many entries of an uploaded array are written: all, but of a value's those of its first lane alone."""
    return prepared.shape.n if name.startswith(key("")) else len(array)


def _report(prepared: Prepared, request: Request, i: int, t: int, pixels_of: Callable[[F32], U8]) -> None:
    """Show a finished row to the watcher; stop when it says so."""
    views = prepared.down.array("x"), prepared.down.array("x0")
    for view in views:
        view.flags.writeable = False
    rows = prepared.shape.rows
    if request.watch is not None and request.watch(StepInfo(i, rows, t, *views, request.first, pixels_of)):
        raise cancelled("The callback", request.table, i + 1)


def _book(prepared: Prepared, timings: Timings) -> None:
    """Add the device's times between the events to `timings`."""
    events = prepared.events
    ends = {"before": "before_ms", "rows": "rows_ms", "start": "update_ms", "after": "after_ms", "post": "post_ms"}
    earlier, steps = events["begin"], []
    for name, event in events.items():
        if isinstance(name, int):
            steps.append(event.since(earlier))
        elif name in ends:
            setattr(timings, ends[name], getattr(timings, ends[name]) + event.since(earlier))
        earlier = event
    timings.add_steps(steps)
