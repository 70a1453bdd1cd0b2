"""Shapes: the part of a request that a captured graph depends on, and which arrays and calls a run of it consists of.

Everything else (seeds, the solver's coefficients, the lanes' weights, where the chain starts) is uploaded, so that one
captured graph serves all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.backends.graph import Arrays
from engine.backends.tensorrt.kernels import CONTROL_WORDS
from engine.bundle.pipeline import ROWS, TIMESTEPS, CallSpec, PipelineSpec, X
from engine.device.memory import Spec
from engine.errors import BackendError
from engine.kernels import ROW_FIELDS
from engine.kernels.operands import FULL
from engine.request import Request


@dataclass(frozen=True)
class Shape:
    """n samples in len(active) rows.

    active         how many lanes of the network each row evaluates
    sizes          the free dimensions of the inputs, by name
    inputs, given  the names of what the request brings
    x_T, noise     how many samples of it are given; 0: drawn from the seeds
    start          whether an image to start from is given
    scaled         whether the network is given c_in x and not x in some row
    full, history, y   whether some row is a full one, pushes, or uses y
    watched        whether a callback looks at x0 after every row
    """

    n: int
    lanes: int
    active: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]
    inputs: tuple[str, ...]
    given: tuple[str, ...]
    x_T: int
    noise: int
    start: bool
    scaled: bool
    full: bool
    history: bool
    y: bool
    watched: bool

    @property
    def rows(self) -> int:
        """Calls of the step's network."""
        return len(self.active)


def shape_of(request: Request, pipeline: PipelineSpec) -> Shape:
    """The shape of a request."""
    table = request.table
    beyond = np.asarray(table.weights[:, 1:]).any(axis=1)
    return Shape(
        n=len(request),
        lanes=request.lanes,
        active=tuple(np.where(beyond, request.lanes, 1).tolist()),
        sizes=_sizes(request, pipeline),
        inputs=tuple(request.inputs),
        given=tuple(request.given),
        x_T=0 if request.x_T is None else len(request.x_T),
        noise=0 if request.noise is None else request.noise.shape[1],
        start=request.start is not None,
        scaled=table.scales_x,
        full=bool(table.rows[:, list(FULL)].any()),
        history=table.pushes,
        y=table.carries_y,
        watched=request.watch is not None,
    )


def _sizes(request: Request, pipeline: PipelineSpec) -> tuple[tuple[str, int], ...]:
    found = {
        dim: int(size)
        for name, array in request.inputs.items()
        for dim, size in zip(pipeline.values[name].shape[1:], array.shape[1:], strict=True)
        if isinstance(dim, str)
    }
    return tuple(sorted(found.items()))


def key(value: str) -> str:
    """The name of a value's array: values are named in manifests, and must not meet our own names."""
    return f"value {value}"


def null_key(value: str) -> str:
    """The name of the array of n nulls that a call takes or makes: a lane of a stacked array need not be aligned."""
    return f"null {value}"


def result_key(name: str) -> str:
    """The name of a result's array."""
    return name if name in ("images", X) else key(name)


def spare(call: CallSpec, port: str) -> str:
    """The name of the array for an output that is given already."""
    return f"spare {call.graph} {port}"


class Wiring:
    """A pipeline in one shape: which calls of `before` run, what each value's array looks like, what its null is.

    In a stacked array lane 0, the values themselves, is followed by the lanes of their nulls.
    """

    def __init__(self, pipeline: PipelineSpec, shape: Shape) -> None:
        self.pipeline, self.shape = pipeline, shape
        self._sizes = dict(shape.sizes)
        self.there = frozenset((*shape.inputs, *shape.given))

    @cached_property
    def before(self) -> tuple[CallSpec, ...]:
        """The calls of `before` that make something which is not given."""
        return tuple(c for c in self.pipeline.before if any(name not in self.there for name in c.outputs.values()))

    @cached_property
    def stacked(self) -> tuple[str, ...]:
        """Values whose arrays hold every lane: what `rows` and `step` take."""
        if self.shape.lanes == 1:
            return ()
        names = [v for call in (self.pipeline.rows, self.pipeline.step) for v in call.inputs.values()]
        return tuple(dict.fromkeys(name for name in names if name not in (X, ROWS, TIMESTEPS)))

    @cached_property
    def null_calls(self) -> tuple[CallSpec, ...]:
        """Calls of `before` that run on nulls in every run, because some of what they take has none; in their order."""
        wanted = {name for name in self.stacked if self.has_own_null(name)}
        calls: list[CallSpec] = []
        for call in reversed(self.pipeline.before):
            if wanted & set(call.outputs.values()):
                calls.append(call)
                wanted |= {name for name in call.inputs.values() if self.has_own_null(name)}
        return tuple(reversed(calls))

    def null_output(self, call: CallSpec, port: str) -> str:
        """The name of the array for what a call makes of nulls; what has a null of its own is not used."""
        name = call.outputs[port]
        return null_key(name) if self.has_own_null(name) else f"null {spare(call, port)}"

    def has_own_null(self, value: str) -> bool:
        """Whether each sample has another null of a value."""
        return self.pipeline.has_null(value) and not self.has_fixed_null(value)

    def has_fixed_null(self, value: str) -> bool:
        """Whether a value's null is the same for every request."""
        if value in self.pipeline.nulls:
            return True
        call = self.pipeline.maker(value)
        return call is not None and all(self.has_fixed_null(name) for name in call.inputs.values())

    def blank(self) -> Arrays:
        """One sample of every value whose size is known, zeros, where only shapes are asked for."""
        pipeline = self.pipeline
        made = (name for call in pipeline.before for name in call.outputs.values())
        known = [v for v in (*self.shape.inputs, *made) if self._unknown(v) is None]
        return {v: np.broadcast_to(np.zeros((), pipeline.values[v].dtype), (1, *self.sample(v))) for v in known}

    def _unknown(self, value: str) -> str | None:
        """A free dimension of a value that no input has."""
        dims = self.pipeline.values[value].shape[1:]
        return next((dim for dim in dims if isinstance(dim, str) and dim not in self._sizes), None)

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def sample(self, value: str) -> tuple[int, ...]:
        """The shape of one sample of a value; BackendError where no input says how large it is."""
        unknown = self._unknown(value)
        if unknown is not None:
            raise BackendError(
                f"the value {value!r}: found the free dimension {unknown!r}, expected one that an input has "
                f"({', '.join(self._sizes) or 'there is none'}); run this bundle on another backend"
            )
        return tuple(dim if isinstance(dim, int) else self._sizes[dim] for dim in self.pipeline.values[value].shape[1:])

    def array(self, value: str) -> Spec:
        """Shape and dtype of a value's array."""
        n = self.shape.n * (self.shape.lanes if value in self.stacked else 1)
        return (n, *self.sample(value)), np.dtype(self.pipeline.values[value].dtype)

    def uploaded(self) -> dict[str, Spec]:
        """What the host writes before every run, in one copy."""
        shape, state = self.shape, self.pipeline.state.shape
        specs: dict[str, Spec] = {
            "control": ((CONTROL_WORDS,), np.uint32),
            "coefficients": ((shape.rows, len(ROW_FIELDS)), np.float32),
            "weights": ((shape.rows, shape.lanes), np.float32),
            "timesteps": ((shape.rows,), np.int64),
            "seeds": ((shape.n,), np.uint64),
        }
        if shape.x_T:
            specs["x_T"] = ((shape.x_T, *state), np.float32)
        if shape.noise:
            specs["noise"] = ((shape.rows, shape.noise, *state), np.float32)
        if shape.start:
            specs["start"] = ((shape.n, *state), np.float32)
        return specs | {key(name): self.array(name) for name in sorted(self.there)}

    def kept(self) -> dict[str, Spec]:
        """What is made on the device."""
        shape, pipeline = self.shape, self.pipeline
        state, lanes = pipeline.state.shape, shape.n * shape.lanes
        width = int(pipeline.values[ROWS].shape[-1])
        entries = lanes if pipeline.per_sample_rows else 1
        specs: dict[str, Spec] = {
            "x": ((shape.n if shape.scaled else lanes, *state), np.float32),
            "e": ((lanes, *state), np.float32),
            "rows": ((shape.rows, entries, width), np.float32),
        }
        if ROWS in pipeline.step.inputs.values():
            specs["row"] = ((entries, width), np.float32)
        if shape.scaled:
            specs["x_in"] = ((lanes, *state), np.float32)
        if shape.watched:
            specs["x0"] = ((shape.n, *state), np.float32)
        if shape.y:
            specs["y"] = ((shape.n, *state), np.float32)
        if pipeline.learns_variance:
            specs["v"] = ((lanes, *state), np.float32)
        if shape.history:
            specs["h"] = ((3, shape.n, *state), np.float32)
        for call in (*self.before, *pipeline.after):
            for port, name in call.outputs.items():
                specs[spare(call, port) if name in self.there else key(name)] = self.array(name)
        for call in self.null_calls:
            taken = {null_key(name): name for name in call.inputs.values() if self.pipeline.has_null(name)}
            made = {self.null_output(call, port): name for port, name in call.outputs.items()}
            specs |= {at: ((shape.n, *self.sample(name)), self.array(name)[1]) for at, name in (taken | made).items()}
        return specs | self.pixels()

    def pixels(self) -> dict[str, Spec]:
        """The rounded images."""
        channels, height, width = self.pipeline.image_shape
        return {"images": ((self.shape.n, height, width, channels), np.uint8)}

    def results(self) -> dict[str, Spec]:
        """What a run gives: images, x, the inputs that took part and the value that it may start from, by name."""
        start = self.pipeline.state.start
        names = dict.fromkeys((*self.shape.inputs, *([start] if start is not None else [])))
        values = {name: ((self.shape.n, *self.sample(name)), self.array(name)[1]) for name in names}
        return {**self.pixels(), "x": ((self.shape.n, *self.pipeline.state.shape), np.float32), **values}

    def downloaded(self) -> dict[str, Spec]:
        """What the host may read after a run (x0 after a watched row)."""
        specs = {result_key(name): spec for name, spec in self.results().items()}
        specs["control"] = ((CONTROL_WORDS,), np.uint32)
        if self.shape.watched:
            specs["x0"] = specs["x"]
        return specs
