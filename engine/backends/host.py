"""The chain on the host: the pipeline's graphs called from here, and the sampling loop, one comment a line of the algorithm.

The solver is not here: each row of a `StepTable` says what one network call becomes (engine/solver/table.py), so every
solver, prediction and guidance runs through these lines.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine import kernels
from engine.backends.base import Backend
from engine.backends.graph import Arrays
from engine.backends.guides import Guides
from engine.backends.lanes import Bindings
from engine.backends.regulariser import Regulariser
from engine.backends.tiles import Tiles
from engine.backends.workspace import Workspace
from engine.bundle.pipeline import ROWS, TIMESTEPS, VARIANCE, X0, CallSpec, E, PipelineSpec, X
from engine.errors import NumericsError
from engine.request import FINISH, Blend, Outcome, Request, cancelled
from engine.result import F32, U8, StepInfo, Timings
from engine.solver import noise as noises
from engine.solver.guides import mean_row
from engine.solver.quantized import update_quantized
from engine.solver.table import StepTable

KEPT_SHAPES = 4  # buffers of so many batch shapes are kept: enough for a server's few, flat over any number
UNLIMITED = 2**31

C_IN, PUSH = (kernels.ROW_FIELDS.index(name) for name in ("c_in", "push"))
NOISE = [kernels.ROW_FIELDS.index(name) for name in ("k_n", "q_n")]
FROM_BASE = [kernels.ROW_FIELDS.index(name) for name in ("p_y", "k_y")]  # of rows that take a step once more


class HostChain:
    """Takes requests through the pipeline of a backend's bundle. A `Chain`."""

    def __init__(self, backend: Backend, pipeline: PipelineSpec | None = None, tiles: Tiles | None = None) -> None:
        """The pipeline is the bundle's own, or with `tiles` that of a canvas."""
        self.backend, self.tiles = backend, tiles
        self.pipeline = backend.bundle.manifest.pipeline if pipeline is None else pipeline
        self._graph: Callable[[str], Any] = backend.graph if tiles is None else tiles.graph
        canvas = backend.bundle.canvas if tiles is None else tiles.canvas
        self._block = None if canvas is None else canvas.block  # of noise
        self.bindings = Bindings(self.pipeline, self.call)
        self._workspaces: OrderedDict[tuple[int, int], Workspace] = OrderedDict()
        self._kept_rows: tuple[StepTable, F32] | None = None
        self._guides = Guides(self.pipeline.guides, self._graph, self.call, self._where)
        self._regulariser = Regulariser(self.pipeline.regulariser, self._graph, self.call)
        self.done = 0  # rows of the run
        # What the manifest says, once and not at every run.
        self._before = [(call, {*call.inputs.values()}, {*call.outputs.values()}) for call in self.pipeline.before]
        self._image_shape, self._constant_ports = self.pipeline.image_shape, self.pipeline.constants

    def limit(self, lanes: int) -> int:
        """No limit of its own, but that of windows."""
        return UNLIMITED if self.tiles is None else self.tiles.limit(lanes)

    def close(self) -> None:
        """Drop the buffers."""
        self._workspaces.clear()
        self._kept_rows = None
        self._guides.close()
        self._regulariser.close()
        if self.tiles is not None:
            self.tiles.close()

    def run(self, request: Request, timings: Timings) -> Outcome:
        """before, rows, the loop, after. See `Chain.run`."""
        work = self._workspace(len(request.seeds), request.table.lanes)
        now = perf_counter()
        # Before any network, while what drew the inputs is in the caches still.
        x_T = request.x_T if request.x_T is not None else noises.initial(request.seeds, work.shape, work.x, self._block)
        now = timings.book("noise_ms", now)
        values: Arrays = {**request.inputs, **request.given}
        self.before(values)
        now = timings.book("before_ms", now)
        embeddings = self._rows(request.table, values, work.lanes)
        now = timings.book("rows_ms", now)
        self._start(request, work, values, x_T)
        timings.book("update_ms", now)
        self._loop(request, work, values, embeddings, timings)
        now = perf_counter()
        image = self._after(values, work.x)
        now = timings.book("after_ms", now)
        images = kernels.to_uint8(image, work.images(self._image_shape))
        timings.book("post_ms", now)
        return Outcome(images, work.x, self._results(request, values))

    # ---- around the loop ---------------------------------------------------------------------------------------------

    def before(self, values: Arrays) -> None:
        """Add what `before` makes of these values to them, but for what is there already."""
        for call, takes, makes in self._before:
            # A call that only makes what is given already may lack its inputs: nothing needs it.
            if takes <= values.keys() and not makes <= values.keys():
                values.update({**self.call(call, values), **values})

    def _rows(self, table: StepTable, values: Arrays, lanes: int) -> F32:
        """The table of embeddings: [rows, 1, R], or [rows, lanes * n, R] where it depends on the sample."""
        if self._kept_rows is not None and self._kept_rows[0] is table:
            return self._kept_rows[1]
        call, timesteps = self.pipeline.rows, np.ascontiguousarray(table.timesteps, np.int64)
        names = [name for name in call.inputs.values() if name != TIMESTEPS]
        stacked = {name: self.bindings.stacked(name, values, lanes) for name in names}
        rows = cast(F32, self.call(call, {**stacked, TIMESTEPS: timesteps})[ROWS])
        if names:  # of the samples too
            return rows
        self._kept_rows = table, rows[:, None, :]
        return self._kept_rows[1]

    def _start(self, request: Request, work: Workspace, values: Arrays, x_T: F32) -> None:
        """x = k_noise x_T + k_start start + k_centre centre, in place in the workspace."""
        start, state = request.table.start, self.pipeline.state
        np.multiply(x_T, np.float32(start.k_noise), out=work.x)
        image = request.start if request.start is not None else _value(values, state.start)
        for k, source in ((start.k_start, image), (start.k_centre, _value(values, state.centre))):
            if k != 0.0 and source is not None:
                work.x += np.float32(k) * cast(F32, source)

    def _after(self, values: Arrays, x: F32) -> F32:
        """The value that becomes pixels."""
        values = values | {X: x}
        for call in self.pipeline.after:
            values.update(self.call(call, values))
        return cast(F32, values[self.pipeline.image])

    def pixels(self, values: Arrays, x: F32) -> U8:
        """A state as the images that the pipeline makes of it, in an array of their own."""
        return kernels.to_uint8(np.ascontiguousarray(self._after(values, x)))

    def _results(self, request: Request, values: Arrays) -> Arrays:
        start = self.pipeline.state.start
        return {name: array for name, array in values.items() if name in request.inputs or name == start}

    def call(self, call: CallSpec, values: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
        """One call of the pipeline on values by name; its outputs by name, the caller's own."""
        outputs = self._graph(call.graph)(**{port: np.ascontiguousarray(values[name]) for port, name in call.inputs.items()})
        for array in outputs.values():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise NumericsError(
                    f"The graph {call.graph!r} ({self._where()}) returned NaN or infinity outside the loop; every value was "
                    f"expected to be finite. Check {', '.join(call.inputs.values())} as you passed them, and build the "
                    f"bundle again from its checkpoint if they are ordinary."
                )
        # Copies: a graph's outputs are its buffers, and one graph may serve two calls.
        return {name: outputs[port].copy() for port, name in call.outputs.items()}

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self, request: Request, work: Workspace, values: Arrays, embeddings: F32, timings: Timings) -> None:
        """Take `work.x` from the start to x_0 in place."""
        table, step = request.table, self.pipeline.step
        quantize = self._codes if request.setting.quantize_denoised else None
        constants = self._constants(values, work)
        centre = _value(values, self.pipeline.state.centre)
        row_port = next((port for port, name in step.inputs.items() if name == ROWS), None)
        work.begin(table, shows_x0=request.watch is not None or quantize is not None)
        h1, h2, h3 = (None, None, None) if work.history is None else work.history
        answers: list[float] = []
        self.done = 0
        if table.takes_guide:
            self._guides.begin(table)
        if table.nets is not None:
            self._regulariser.begin(table)
        for i, (t, row) in enumerate(zip(table.timesteps, table.rows, strict=True)):
            if request.blend is not None and not row[FROM_BASE].any():
                begun = perf_counter()
                blend_in(request.blend, request.seeds, i, work.x, cast("F32 | None", centre), self._block)
                timings.book("update_ms", begun)
            asked = perf_counter()
            # e_l = network(c_in x, what lane l is bound to, the embedding of t) in every lane with a weight
            lanes = active_lanes(table, i)
            if table.regularised(i):
                timings.network_calls += 1
                e, v = self._regulariser.evaluate(i, work.network_input(1, float(row[C_IN])))
            else:
                e, v = self._evaluate(work, lanes, float(row[C_IN]), constants, row_port, embeddings[i], timings)
            answered = perf_counter()
            # e = sum of w_l e_l;  x_0 = limit(p . (x, e, c, y, h));  x' = k . (x_0, x, e, c, exp(s_n v) noise, y, h, g)
            noise = None if request.noise is None else request.noise[i]
            if noise is None and self._block is not None and row[NOISE].any():
                noise = noises.step_noise(request.seeds, i, work.shape, block=self._block)
            operands: dict[str, Any] = {
                "weights": table.weights[i, :lanes],
                "c": cast("F32 | None", centre),
                "y": work.y,
                "h1": h1,
                "h2": h2,
                "h3": h3,
                "v": v,
                "noise": noise,
                "seeds": request.seeds if noise is None else None,
                "step": i if noise is None else None,
                "threads": self.backend.threads,
            }
            if table.guided[i]:
                # g = grad log p(y | x) of the row's guide, scaled
                mean = partial(mean_of, row, work.x, e, operands)
                operands["g"] = self._guides.gradient(request, i, work.x, v, values, mean)
                answered = perf_counter()
            results: dict[str, Any] = {"out": work.x, "y_out": work.y, "push_out": h3}
            if quantize is None:
                finite = kernels.update(row, work.x, e, **operands, **results, x0_out=work.x0)
            else:
                finite = update_quantized(row, work.x, e, quantize, **operands, **results, x0_out=cast(F32, work.x0))
            if row[PUSH] != 0.0:
                h1, h2, h3 = h3, h1, h2
            self.done = i + 1
            answers.append(1e3 * (answered - asked))
            timings.book("update_ms", answered)
            if not finite:
                raise self._not_finite(table, i)
            if request.watch is not None and report(request, i, int(t), work, lambda x0: self.pixels(values, x0)):
                np.copyto(work.x, cast(F32, work.x0))
                break
            if request.stop is not None and i + 1 < len(table) and request.stop():
                raise cancelled("stop", table, i + 1)
        timings.add_steps(answers)

    def _codes(self, x0: F32) -> F32:
        """What `quantize` makes of a row's x0."""
        call = self.pipeline.quantize
        assert call is not None, "a request for it is refused without one"
        return cast(F32, self.call(call, {X0: x0})[X0])

    def _constants(self, values: Arrays, work: Workspace) -> Arrays:
        """What the step's graph takes beside x and the row, stacked over the lanes, by its own names."""
        return {
            port: self.bindings.stacked(name, values, work.lanes) for port, name in self._constant_ports.items()
        }

    def _evaluate(
        self, work: Workspace, lanes: int, c_in: float, constants: Arrays, row_port: str | None, row: F32, timings: Timings
    ) -> tuple[F32, F32 | None]:
        """e of the first lanes, [lanes * n, C, H, W], in one call or, where that is faster, one a lane; and lane 0's second
        output, where the network has one."""
        timings.network_calls += 1
        x = work.network_input(lanes, c_in)
        if lanes == 1 or work.folded:
            e, v = self._network(x, 0, lanes * work.n, constants, row_port, row)
            return e, None if v is None else v[: work.n]
        for lane in reversed(range(lanes)):  # lane 0 last: its second output is then what the graph's buffer holds
            begin, end = lane * work.n, (lane + 1) * work.n
            timings.network_calls += lane > 0
            work.e[begin:end], v = self._network(x[begin:end], begin, end, constants, row_port, row)
        return work.e[: lanes * work.n], v

    def _network(
        self, x: F32, begin: int, end: int, constants: Arrays, row_port: str | None, row: F32
    ) -> tuple[F32, F32 | None]:
        """e and the second output of one call of the step's graph for the entries begin..end of the lanes."""
        step = self.pipeline.step
        inputs: Arrays = {port: array[begin:end] for port, array in constants.items()}
        inputs[next(port for port, name in step.inputs.items() if name == X)] = x
        if row_port is not None:
            inputs[row_port] = row if len(row) == 1 else row[begin:end]
        outputs = self._graph(step.graph)(**inputs)
        ports = {name: port for port, name in step.outputs.items()}
        return cast(F32, outputs[ports[E]]), cast("F32 | None", outputs.get(ports.get(VARIANCE, "")))

    def _workspace(self, n: int, lanes: int) -> Workspace:
        """The buffers of this batch shape; those least recently used are dropped beyond KEPT_SHAPES."""
        key = (n, lanes)
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(n, lanes, self.pipeline.state.shape)
            if len(self._workspaces) > KEPT_SHAPES:
                self._workspaces.popitem(last=False)
        self._workspaces.move_to_end(key)
        return self._workspaces[key]

    def _not_finite(self, table: StepTable, i: int) -> NumericsError:
        name = self._regulariser.name if table.regularised(i) else self.pipeline.step.graph
        return NumericsError(
            f"The graph {name!r} ({self._where()}) returned NaN or infinity at step {i + 1} of "
            f"{len(table.rows)} (timestep {int(table.timesteps[i])}); every value was expected to be finite. Open the "
            f"bundle with precision='f32' if it ran in another; if it persists, check the inputs, x_T and noise you passed, "
            f"and build the bundle again from its checkpoint."
        )

    def _where(self) -> str:
        return f"{self.backend.NAME}, precision {self.backend.precision}"


def mean_of(row: F32, x: F32, e: F32, operands: Mapping[str, Any]) -> F32:
    """What x' of a row is without noise and a guide's gradient, in an array of its own."""
    mean = np.empty_like(x)
    kernels.update(mean_row(row), x, e, **operands, out=mean)
    return mean


def active_lanes(table: StepTable, i: int) -> int:
    """Lanes that row i evaluates: a row without weight beyond the first runs that one alone."""
    return int(table.weights.shape[1]) if table.weights[i, 1:].any() else 1


def blend_in(
    blend: Blend, seeds: npt.NDArray[np.uint64], i: int, x: F32, centre: F32 | None, block: noises.Block = None
) -> None:
    """x <- keep (signal known + c + sigma n) + (1 - keep) x before row i, in place."""
    noise = noises.known_noise(seeds, i, x.shape[1:], block) if blend.noise is None else blend.noise[i]
    known = blend.signal[i] * blend.known + blend.sigma[i] * noise
    if centre is not None:
        known += centre
    np.copyto(x, blend.keep * known + (np.float32(1) - blend.keep) * x)


def report(request: Request, i: int, t: int, work: Workspace, pixels_of: Callable[[F32], U8]) -> bool:
    """Show a finished row to the watcher; stop when it says so. Whether it wants this row's x0 for the result."""
    assert request.watch is not None
    assert work.x0 is not None
    views = work.x.view(), work.x0.view()
    for view in views:
        view.flags.writeable = False
    steps = len(request.table.rows)
    answer = request.watch(StepInfo(i, steps, t, *views, request.first, pixels_of))
    if answer and answer is not FINISH:
        raise cancelled("The callback", request.table, i + 1)
    return answer is FINISH


def _value(values: Arrays, name: str | None) -> npt.NDArray[np.generic] | None:
    return None if name is None else values[name]
