"""The pipeline of a bundle: which graphs run before the loop, in it and after it, and what each is fed.

    encode   from an image to inputs, and to the loop's clean state x; only for the verbs that take images
    before   once a request, from inputs to values
    rows     once a set of timesteps: everything of the network that depends on the timestep
    step     once a row of the solver's table: x and the values above to the network's output e, and to `variance` where a
             second output says how much noise each element gets
    quantize only where a request asks for it, once a row: from the row's x0 to what of it a decoder can tell apart, such as
             the nearest codes, or to channels of a given mean and deviation; null where there is no such graph
    guides   once a row that is guided: from x to the gradient that is added to the step (engine/bundle/guides.py); absent
             where there are none
    regulariser
             once a row that is its own: a second network from x to e (engine/bundle/regulariser.py); absent where there is
             none
    after    once a request, from the final x to values
    maps     the inputs that lie over the state as x does, so that the calls can be made on windows of a larger one; null
             where the pipeline works in its own size alone (engine/bundle/maps.py)
    multiple what height and width of the state are multiples of where the calls are made on the whole of a larger or smaller
             one at once; null where each graph is of one size

Calls name graphs and values and nothing else. `pipeline_reader.py` reads them, each held against its graph's own signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated

from engine.bundle.fields import Fields
from engine.bundle.guides import GuideSpec
from engine.bundle.regulariser import RegulariserSpec
from engine.bundle.tensors import ByValue, Null, Shape, TensorSpec

X, E, VARIANCE, ROWS, TIMESTEPS, IMAGE = "x", "e", "variance", "rows", "timesteps", "image"
X0 = "x0"  # of a row


@dataclass(frozen=True)
class Value:
    """What a call may be fed: dtype, shape ("batch" first, but for `timesteps`), and what makes it."""

    dtype: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


Values = dict[str, Value]


@dataclass(frozen=True)
class CallSpec:
    """One graph with its wiring: inputs {name in the graph: value}, outputs {name in the graph: value}."""

    graph: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class StateSpec:
    """What the loop carries: its size, the limit of x0 (None: none), and the values it is centred on and may start from."""

    channels: Annotated[int, Fields.integer, 1, 65_536]
    height: Annotated[int, Fields.integer, 1, 65_536]
    width: Annotated[int, Fields.integer, 1, 65_536]
    clip: Annotated[float, Fields.number, 1e-6, 1e6] | None
    centre: Annotated[str, Fields.text] | None
    start: Annotated[str, Fields.text] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """One sample's state, [C, H, W]."""
        return self.channels, self.height, self.width


@dataclass(frozen=True, eq=False)
class PipelineSpec(ByValue):
    """A pipeline that holds together.

    values         dtype and shape of everything that a call of it makes or takes
    encoder_image  the image that `encode` takes, as its graph has it; None where there is no such call
    maps           {value: how many of its pixels one of the state's has a side} of all that lies over the state, x included;
                   None where the pipeline works in its own size alone
    multiple       what a side of the state is a multiple of, where graphs run on any size; None where each is of one
    guides         from the clean end; none where the loop adds no gradient
    regulariser    a second network of rows of its own; None where there is none
    """

    encode: tuple[CallSpec, ...]
    before: tuple[CallSpec, ...]
    rows: CallSpec
    step: CallSpec
    quantize: CallSpec | None
    after: tuple[CallSpec, ...]
    nulls: dict[str, Null]
    state: StateSpec
    image: str
    values: Values
    encoder_image: TensorSpec | None = None
    maps: Mapping[str, int] | None = None
    multiple: int | None = None
    guides: tuple[GuideSpec, ...] = ()
    regulariser: RegulariserSpec | None = None

    @property
    def calls(self) -> tuple[CallSpec, ...]:
        """Every call but those of guides and of the regulariser, in the order of a request."""
        quantize = () if self.quantize is None else (self.quantize,)
        return (*self.encode, *self.before, self.rows, self.step, *quantize, *self.after)

    @property
    def run_calls(self) -> tuple[CallSpec, ...]:
        """Those that every request makes, in its order: without `encode` and `quantize`, guides and the regulariser."""
        return (*self.before, self.rows, self.step, *self.after)

    @property
    def guide_calls(self) -> tuple[CallSpec, ...]:
        """Those of guides, each its rows first."""
        return tuple(call for guide in self.guides for call in (guide.rows, guide.step) if call is not None)

    @property
    def guide_graphs(self) -> frozenset[str]:
        """The graphs of guides."""
        return frozenset(call.graph for call in self.guide_calls)

    @property
    def regulariser_calls(self) -> tuple[CallSpec, ...]:
        """Those of the regulariser, its rows first."""
        found = self.regulariser
        return () if found is None else tuple(call for call in (found.rows, found.step) if call is not None)

    @property
    def graphs(self) -> tuple[str, ...]:
        """The graphs that this pipeline runs, each once."""
        calls = (*self.calls, *self.guide_calls, *self.regulariser_calls)
        return tuple(dict.fromkeys(call.graph for call in calls))

    @property
    def encodes_state(self) -> bool:
        """Whether `encode` makes the loop's clean state of an image."""
        return any(X in call.outputs.values() for call in self.encode)

    @property
    def constants(self) -> dict[str, str]:
        """{name in the step's graph: value} of what stays the same in all steps."""
        return {port: value for port, value in self.step.inputs.items() if value not in (X, ROWS)}

    @property
    def learns_variance(self) -> bool:
        """Whether the network has a second output, which variance "learned_range" reads."""
        return VARIANCE in self.step.outputs.values()

    @property
    def per_sample_rows(self) -> bool:
        """Whether the rows depend on the sample too."""
        return len(self.rows.inputs) > 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """One image, [C, height, width]."""
        channels, height, width = self.values[self.image].shape[1:]
        return int(channels), int(height), int(width)

    def maker(self, value: str) -> CallSpec | None:
        """The call of `before` that makes a value; None for an input."""
        return next((call for call in self.before if value in call.outputs.values()), None)

    def inputs_for(self, values: Iterable[str], given: AbstractSet[str]) -> set[str]:
        """The inputs that these values are made of, where those of `given` need not be made."""
        names: set[str] = set()
        for value in set(values) - given:
            call = self.maker(value)
            names |= {value} if call is None else self.inputs_for(call.inputs.values(), given)
        return names

    def run_values(self, *, guided: bool = False) -> list[str]:
        """What a run needs beside x: all that its calls take, with those of guides or without, the centre and the start."""
        calls = (self.rows, self.step, *self.after, *(self.guide_calls if guided else ()))
        fed = [value for call in calls for value in call.inputs.values()]
        return fed + [name for name in (self.state.centre, self.state.start) if name is not None]

    def null_is_computed(self, value: str) -> bool:
        """Whether a value without a null of its own has one made by a call that is run on nulls."""
        call = self.maker(value)
        return value not in self.nulls and call is not None and any(self.has_null(name) for name in call.inputs.values())

    def has_null(self, value: str) -> bool:
        """Whether a value is something else in the null lane."""
        return value in self.nulls or self.null_is_computed(value)

    @property
    def guided(self) -> bool:
        """Whether guidance has a null lane to tell apart from the other."""
        return any(self.has_null(value) for call in (self.rows, self.step) for value in call.inputs.values())
