"""The manifest's field `pipeline`, read: every call held against its graph's signature and what is there by then."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NoReturn

from engine.bundle.fields import Fields, shorten
from engine.bundle.graphs import GraphSpec
from engine.bundle.guides import ENTROPY, G, GuideSpec, parse_interval
from engine.bundle.inputs import RESERVED, InputSpec
from engine.bundle.limits import MAX_CALLS, MAX_CLASSES, MAX_GUIDES
from engine.bundle.maps import parse_maps, parse_multiple
from engine.bundle.pipeline import (
    IMAGE,
    ROWS,
    TIMESTEPS,
    VARIANCE,
    X0,
    CallSpec,
    E,
    PipelineSpec,
    StateSpec,
    Value,
    Values,
    X,
)
from engine.bundle.regulariser import RegulariserSpec
from engine.bundle.schema import nested
from engine.bundle.tensors import BATCH, IMAGE_CHANNELS, STEPS, Null, Shape, TensorSpec, parse_null
from engine.solver.prediction import PREDICTIONS


def parse_pipeline(fields: Fields, inputs: tuple[InputSpec, ...], graphs: Mapping[str, GraphSpec]) -> PipelineSpec:
    """The field `pipeline`, each call held against its graph and against what is there by then."""
    reader = _Reader(graphs, {spec.name: Value(spec.dtype, spec.shape) for spec in inputs})
    state = nested(fields, "state", StateSpec)
    shape: Shape = (BATCH, *state.shape)
    encode = reader.encode(fields, shape)
    before = reader.section(fields, "before", dict(reader.values))
    reader.check_state(fields.object("state"), state, shape)
    rows = reader.rows(fields)
    step = reader.step(fields, shape)
    quantize = reader.quantize(fields, shape)
    guides = reader.guides(fields, shape)
    regulariser = reader.regulariser(fields, state, shape)
    after = reader.after(fields, shape)
    image = reader.image(fields, after)
    nulls = {spec.name: spec.null for spec in inputs if spec.null is not None} | reader.nulls(fields, before)
    spec = PipelineSpec(
        encode, before, rows, step, quantize, after, nulls, state, image, reader.values, reader.encoder_image, maps=None,
        guides=guides, regulariser=regulariser,
    )  # fmt: skip
    maps = parse_maps(fields, spec, [entry.name for entry in inputs])
    multiple = parse_multiple(fields, spec, maps)
    fields.done(("guides", "regulariser"))
    return dataclasses.replace(spec, maps=maps, multiple=multiple)


class _Reader:
    """Reads the sections in their order and knows which values there are so far."""

    def __init__(self, graphs: Mapping[str, GraphSpec], values: Values) -> None:
        self.graphs = graphs
        self.inputs = tuple(values)
        self.values = values
        self.encoder_image: TensorSpec | None = None

    # ---- sections ----------------------------------------------------------------------------------------------------

    def encode(self, top: Fields, state: Shape) -> tuple[CallSpec, ...]:
        """`encode`: sees the image and its own values; at least one of those has the name and kind of an input, or is x."""
        taken = self.values | {X: Value("float32", state)}
        there: Values = {}
        calls: list[CallSpec] = []
        for fields in self._calls(top, "encode"):
            call, made = self._call(fields, there, {}, image=True)
            _check_samples(fields, call, made)
            for port, name in call.outputs.items():
                known = taken.get(name)
                if known is not None and made[name] != known:
                    fields.object("outputs").refuse(port, f"another name for {made[name]}: {name} is {known}")
            there |= made
            calls.append(call)
        if calls and not any(name in taken for name in there):
            top.refuse("encode", f"outputs that are named as an input, or as the state: {', '.join(taken)}")
        there.pop(X, None)  # which the loop makes, for all calls after it
        self.values.update({name: value for name, value in there.items() if name not in self.values})
        self.encoded = frozenset(there)
        return tuple(calls)

    def section(self, top: Fields, key: str, there: Values) -> tuple[CallSpec, ...]:
        """`before` or `after`: each call sees `there` and what earlier ones made."""
        there = {name: value for name, value in there.items() if name in self.inputs or name not in self.encoded}
        entries = self._calls(top, key)
        later = [_names(fields) for fields in entries]
        calls: list[CallSpec] = []
        for index, fields in enumerate(entries):
            pending = {name: index + offset for offset, names in enumerate(later[index:]) for name in names}
            call, made = self._call(fields, there, pending)
            _check_samples(fields, call, made)
            for port, name in call.outputs.items():
                if name in self.values or name in RESERVED:
                    fields.object("outputs").refuse(port, "a new name: a value has one maker, and some names are reserved")
            there |= made
            self.values.update(made)
            calls.append(call)
        return tuple(calls)

    def rows(self, top: Fields) -> CallSpec:
        """`rows`: timesteps and values to one table, [steps, R], or [steps, batch, R] where it takes a value of a sample."""
        fields = top.object("rows")
        there = self._usable() | {TIMESTEPS: Value("int64", (STEPS,))}
        call, made = self._call(fields, there, {})
        expected: Shape = (STEPS, BATCH) if len(call.inputs) > 1 else (STEPS,)
        if TIMESTEPS not in call.inputs.values():
            top.refuse("rows", f"a call that takes {TIMESTEPS!r}")
        table = made.get(ROWS)
        if len(made) != 1 or table is None:
            fields.refuse("outputs", f"one output, which is called {ROWS!r}")
        if table.dtype != "float32" or table.shape[:-1] != expected or not isinstance(table.shape[-1], int):
            fields.refuse("outputs", f"float32[{', '.join(map(str, expected))}, a number] from the graph, not {table}")
        self.values[ROWS] = Value("float32", (BATCH if len(expected) > 1 else 1, table.shape[-1]))
        return call

    def step(self, top: Fields, state: Shape) -> CallSpec:
        """`step`: x, the row of a timestep and values to e and, from some networks, the variance, of the state's shape."""
        fields = top.object("step")
        self.values[X] = Value("float32", state)
        call, made = self._call(fields, self._usable() | {X: self.values[X], ROWS: self.values[ROWS]}, {})
        if X not in call.inputs.values():
            top.refuse("step", f"a call that takes {X!r}")
        if E not in made or not {E, VARIANCE} >= set(made) or any(value != self.values[X] for value in made.values()):
            _refuse_outputs(fields, made, self.values[X])
        return call

    def quantize(self, top: Fields, state: Shape) -> CallSpec | None:
        """`quantize`: x0 to x0; null where the pipeline has none."""
        if top.take_null("quantize"):
            return None
        fields, kept = top.object("quantize"), Value("float32", state)
        call, made = self._call(fields, {X0: kept}, {})
        if made != {X0: kept}:
            fields.refuse("outputs", f"one output, which is called {X0!r} and is {kept} as the state")
        return call

    def guides(self, top: Fields, state: Shape) -> tuple[GuideSpec, ...]:
        """`guides`: each as `rows` and `step`, with rows of its own; absent where there are none."""
        if "guides" not in top:
            return ()
        entries = top.objects("guides", "a list of guides, which is left out where it would be empty")
        if len(entries) > MAX_GUIDES:
            top.refuse("guides", f"at most {MAX_GUIDES} guides")
        return tuple(self._guide(fields, Value("float32", state)) for fields in entries)

    def _guide(self, fields: Fields, state: Value) -> GuideSpec:
        rows, there = self._own_rows(fields)
        call, made = self._call(fields.object("step"), self._usable() | {X: state} | there, {})
        if X not in call.inputs.values() or (rows is not None and ROWS not in call.inputs.values()):
            fields.refuse("step", f"a call that takes {X!r}, and {ROWS!r} where the guide makes them")
        kinds = {G: state, ENTROPY: Value("float32", (BATCH,))}
        if G not in made or any(kinds.get(name) != value for name, value in made.items()):
            found = ", ".join(f"{name} {value}" for name, value in made.items())
            wanted = f"{G!r}, {state} as the state, and perhaps {ENTROPY!r}, {kinds[ENTROPY]}"
            fields.refuse("step", f"outputs {wanted}, not {found}")
        timesteps, classes = parse_interval(fields, "timesteps"), fields.integer("classes", 2, MAX_CLASSES)
        fields.done()
        return GuideSpec(rows, call, timesteps, classes)

    def regulariser(self, top: Fields, state: StateSpec, shape: Shape) -> RegulariserSpec | None:
        """`regulariser`: as `rows` and `step`, with rows of its own and nothing else that it is fed; absent where there is
        none."""
        if "regulariser" not in top:
            return None
        fields, kind = top.object("regulariser"), Value("float32", shape)
        if state.centre is not None:
            expected = f"none: an unconditional network is not told {state.centre!r}, around which the state lies"
            top.refuse("regulariser", expected)
        rows, there = self._own_rows(fields)
        call, made = self._call(fields.object("step"), {X: kind} | there, {})
        if X not in call.inputs.values() or (rows is not None and ROWS not in call.inputs.values()):
            fields.refuse("step", f"a call that takes {X!r}, and {ROWS!r} where the regulariser makes them")
        if E not in made or not {E, VARIANCE} >= set(made) or any(value != kind for value in made.values()):
            _refuse_outputs(fields.object("step"), made, kind)
        prediction = fields.choice("prediction", tuple(PREDICTIONS))
        fields.done()
        return RegulariserSpec(rows, call, prediction)

    def _own_rows(self, fields: Fields) -> tuple[CallSpec | None, Values]:
        """The table of a guide or a regulariser, and the row that it has for a timestep; nothing where `rows` is null."""
        if fields.take_null("rows"):
            return None, {}
        rows, made = self._call(fields.object("rows"), {TIMESTEPS: Value("int64", (STEPS,))}, {})
        table = made.get(ROWS)
        if len(made) != 1 or table is None or table.dtype != "float32" or len(table.shape) != 2 or (
            table.shape[0] != STEPS or not isinstance(table.shape[1], int)
        ):
            fields.refuse("rows", f"a call with one output, float32[{STEPS}, a number], which is called {ROWS!r}")
        return rows, {ROWS: Value("float32", (1, table.shape[1]))}

    def after(self, top: Fields, state: Shape) -> tuple[CallSpec, ...]:
        """`after`: sees the final x."""
        return self.section(top, "after", self._usable() | {X: Value("float32", state)})

    def image(self, top: Fields, after: tuple[CallSpec, ...]) -> str:
        """`image`: the value that becomes pixels."""
        choices = (X, *(name for call in after for name in call.outputs.values()))
        image = top.choice("image", choices)
        value = self.values[image]
        size = value.shape[1:]
        if value.dtype != "float32" or len(size) != 3 or size[0] not in IMAGE_CHANNELS or not all(
            isinstance(d, int) for d in size
        ):
            top.refuse("image", f"a value of float32[batch, {' or '.join(map(str, IMAGE_CHANNELS))}, H, W], not {value}")
        return image

    def nulls(self, top: Fields, before: tuple[CallSpec, ...]) -> dict[str, Null]:
        """`nulls`: of values that `before` makes."""
        fields = top.object("nulls")
        made = [name for call in before for name in call.outputs.values()]
        nulls: dict[str, Null] = {}
        for name in fields:
            if name not in made:
                fields.refuse(name, f"a null of a value that `before` makes: {', '.join(made) or 'it makes none'}")
            value = self.values[name]
            null = parse_null(fields, name, value.shape[1:], value.dtype, None)
            if null is None:
                fields.refuse(name, "a number or a nested list")
            nulls[name] = null
        fields.done()
        return nulls

    def check_state(self, fields: Fields, state: StateSpec, shape: Shape) -> None:
        """Centre and start are values of the state's shape."""
        for key, name in (("centre", state.centre), ("start", state.start)):
            if name is None:
                continue
            value = self._usable().get(name)
            if value is None:
                known = ", ".join(self._usable()) or "there is none"
                fields.refuse(key, f"an input or a value that `before` makes: {known}")
            if value != Value("float32", shape):
                fields.refuse(key, f"a value of {Value('float32', shape)} as the state, not {value}")

    # ---- one call ----------------------------------------------------------------------------------------------------

    def _usable(self) -> Values:
        """Inputs and values of `before`: what `rows`, `step` and `after` may take."""
        hidden = (X, E, VARIANCE, ROWS, *(name for name in self.encoded if name not in self.inputs))
        return {name: value for name, value in self.values.items() if name not in hidden}

    def _calls(self, top: Fields, key: str) -> list[Fields]:
        entries = top.objects(key, "a list of calls, which may be empty", empty=True)
        if len(entries) > MAX_CALLS:
            top.refuse(key, f"at most {MAX_CALLS} calls")
        return entries

    def _call(
        self, fields: Fields, there: Values, pending: Mapping[str, int], *, image: bool = False
    ) -> tuple[CallSpec, Values]:
        """One call and the values that it makes."""
        name = fields.text("graph")
        graph = self.graphs.get(name)
        if graph is None:
            fields.refuse("graph", f"one of the bundle's graphs: {', '.join(self.graphs)}")
        bound: dict[str, int | str] = {}
        ins, outs = fields.object("inputs"), fields.object("outputs")
        wiring = dict(_wires(ins, graph.inputs))
        for tensor in graph.inputs:
            value = wiring[tensor.name]
            if image and value == IMAGE:
                _check_image(ins, tensor)
                self.encoder_image = tensor
                there = there | {IMAGE: Value(tensor.dtype, tensor.shape)}
            if value not in there:
                _refuse_value(ins, tensor.name, value, there, pending)
            _fit(ins, tensor, there[value], bound)
        results = dict(_wires(outs, graph.outputs))
        for tensor in graph.outputs:
            free = next((d for d in tensor.shape if isinstance(d, str) and d not in (BATCH, *bound)), None)
            if free is not None:
                outs.refuse(tensor.name, f"an output whose sizes follow from the inputs: {free!r} of {tensor} is in none")
        if len(set(results.values())) < len(results):
            fields.refuse("outputs", "a name of its own for each output")
        made = {results[t.name]: Value(t.dtype, tuple(bound.get(d, d) if isinstance(d, str) else d for d in t.shape))
                for t in graph.outputs}  # fmt: skip
        fields.done()
        return CallSpec(name, wiring, results), made


def _refuse_outputs(step: Fields, made: Values, state: Value) -> NoReturn:
    found = ", ".join(f"{name} {value}" for name, value in made.items())
    step.refuse(
        "outputs", f"one output, which is called {E!r} and is {state} as the state, or beside it a second one of that kind, "
        f"called {VARIANCE!r}, not {found}"
    )  # fmt: skip


def _names(fields: Fields) -> list[str]:
    """The names that a call would make, as far as they can be read: for the message about a cycle."""
    outputs = fields.object("outputs")
    return [name for name in (outputs.take(key, "a name") for key in outputs) if isinstance(name, str)]


def _wires(fields: Fields, tensors: tuple[TensorSpec, ...]) -> Iterator[tuple[str, str]]:
    """(name in the graph, value) for exactly the graph's tensors."""
    for tensor in tensors:
        yield tensor.name, fields.text(tensor.name, f"the name of a value: the graph has {tensor}")
    fields.done()


def _refuse_value(fields: Fields, port: str, value: str, there: Values, pending: Mapping[str, int]) -> None:
    known = ", ".join(sorted(there)) or "none"
    if value in pending:
        fields.refuse(port, f"a value that is there by then ({known}): a call makes it that comes no earlier than this one, "
                            f"which is a cycle")  # fmt: skip
    fields.refuse(port, f"a value that something makes: {shorten(known)}")


def _check_samples(fields: Fields, call: CallSpec, made: Values) -> None:
    """What is made outside of the loop is of samples: "batch" comes first, and only there."""
    for port, name in call.outputs.items():
        if made[name].shape[0] != BATCH or BATCH in made[name].shape[1:]:
            expected = f"a value with {BATCH!r} as the first dimension, and only there, not {made[name]}"
            fields.object("outputs").refuse(port, expected)


def _check_image(fields: Fields, tensor: TensorSpec) -> None:
    fits = tensor.dtype == "float32" and len(tensor.shape) == 4 and tensor.shape[0] == BATCH
    if not fits or tensor.shape[1] not in IMAGE_CHANNELS or tensor.range not in ((0.0, 1.0), (-1.0, 1.0)):
        fields.refuse(tensor.name, f"a graph that takes images, float32[batch, C, H, W] in [0, 1] or [-1, 1], not {tensor}")


def _fit(fields: Fields, tensor: TensorSpec, value: Value, bound: dict[str, int | str]) -> None:
    """Refuse a value that the graph's tensor does not take; bind the tensor's free dimensions."""
    expected = f"a value that fits {tensor}, not {value}"
    if tensor.dtype != value.dtype or len(tensor.shape) != len(value.shape):
        fields.refuse(tensor.name, expected)
    for theirs, ours in zip(tensor.shape, value.shape, strict=True):
        if isinstance(theirs, int) or theirs == BATCH or ours == BATCH:
            if theirs != ours:
                fields.refuse(tensor.name, expected)
        elif bound.setdefault(theirs, ours) != ours:
            fields.refuse(tensor.name, f"{expected}: its dimension {theirs!r} is {bound[theirs]} already")
