"""Maps: the values of a pipeline that lie over the state as x does, so many of their pixels to one of the state's.

Where all that the calls make of maps is maps again, and of nothing else, they can be made on windows of a larger picture
(engine/bundle/canvas.py). Which inputs are maps is in the manifest; the rest follows from the calls. Where the files of the
graphs leave height and width free (`multiple`), they can be made on the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from engine.bundle.fields import Fields
from engine.bundle.limits import MAX_SIDE
from engine.bundle.pipeline import IMAGE, VARIANCE, X0, E, PipelineSpec, Value, X
from engine.bundle.tensors import BATCH, Shape, TensorSpec

STATES = (X, X0, E, VARIANCE)  # which are the state's own shape, as its reader has seen to
SIDES = ("height", "width")


def free_dimension(factor: int, axis: int) -> str:
    """What a graph's file calls the height (axis 0) or the width (1) of a map with so many pixels to one of the state's."""
    return SIDES[axis] if factor == 1 else f"{factor}*{SIDES[axis]}"


def free_sizes(spec: PipelineSpec) -> dict[str, int]:
    """{a free dimension in the files of the graphs: its size in this pipeline}; empty where they leave none free."""
    if spec.multiple is None or spec.maps is None:
        return {}
    return sizes_of(spec.maps.values(), (spec.state.height, spec.state.width))


def sizes_of(factors: Iterable[int], sides: tuple[int, int]) -> dict[str, int]:
    """{a free dimension of a map with one of these factors: its size, where the state has these sides}."""
    return {free_dimension(k, axis): k * sides[axis] for k in sorted({*factors}) for axis in (0, 1)}


def at_size(shape: Shape, factor: int | None, sides: tuple[int, int]) -> Shape:
    """The shape of a value where the state has these sides; factor: None for one that does not lie over it."""
    return shape if factor is None else (*shape[:-2], *(factor * side for side in sides))


def tensors_at(tensors: Iterable[TensorSpec], ports: Mapping[str, int], sides: tuple[int, int]) -> tuple[TensorSpec, ...]:
    """The inputs or outputs of a graph, of which `ports` lie over the state, where that has these sides."""
    return tuple(replace(tensor, shape=at_size(tensor.shape, ports.get(tensor.name), sides)) for tensor in tensors)


def map_ports(spec: PipelineSpec) -> dict[str, dict[str, int]]:
    """{graph: {name in the graph: pixels to one of the state's}} of what lies over the state."""
    maps = spec.maps or {}
    return {
        call.graph: {port: maps[name] for port, name in (call.inputs | call.outputs).items() if name in maps}
        for call in spec.calls
    }


def parse_multiple(top: Fields, spec: PipelineSpec, maps: dict[str, int] | None) -> int | None:
    """The field `multiple` of a pipeline: what a side of the state is a multiple of, in any size; null stays None."""
    if top.take_null("multiple"):
        return None
    multiple = top.integer_or_null("multiple", 1, MAX_SIDE)
    if maps is None:
        top.refuse("multiple", "null where maps is null")
    state = spec.state
    if state.height % multiple or state.width % multiple:
        top.refuse("multiple", f"a divisor of the state's {state.height} x {state.width}")
    return multiple


def parse_maps(top: Fields, spec: PipelineSpec, inputs: Sequence[str]) -> dict[str, int] | None:
    """The field `maps` of a pipeline: {value: its pixels to one of the state's, a side}; null stays None."""
    if top.take_null("maps"):
        return None
    expected = "null, or a list of different inputs that lie over the state"
    names = top.array("maps", expected)
    if any(name not in inputs for name in names) or len(set(names)) < len(names):
        top.refuse("maps", expected)
    state = spec.state
    if min(state.height, state.width) < 2:
        top.refuse("maps", f"null for a state of {state.height} x {state.width}, which windows have no borders in")
    maps = dict.fromkeys(STATES, 1)
    maps |= {name: _factor(top, spec, name, spec.values[name]) for name in names}
    if spec.encoder_image is not None:
        maps[IMAGE] = _factor(top, spec, IMAGE, Value(spec.encoder_image.dtype, spec.encoder_image.shape))
    for call in spec.calls:
        over = any(value in maps for value in call.inputs.values())
        for name in call.outputs.values():
            if over and name not in STATES:
                maps[name] = _factor(top, spec, name, spec.values[name])
            elif not over and name in maps:
                top.refuse("maps", f"null, as {call.graph} makes {name} of what does not lie over the state")
    for used in (state.centre, state.start, spec.image):
        if used is not None and used not in maps:
            top.refuse("maps", f"null, as {used} does not lie over the state")
    for name, null in spec.nulls.items():
        if name in maps and null.shape:  # not one number for all of it
            top.refuse("maps", f"null, as the null of {name} is a map of its own")
    return maps


def _factor(top: Fields, spec: PipelineSpec, name: str, value: Value) -> int:
    """How many pixels of a value, [batch, C, H, W] or [batch, H, W], one of the state's has a side."""
    state, (height, width) = spec.state, value.shape[-2:] if len(value.shape) in (3, 4) else (None, None)
    if value.shape[0] == BATCH and isinstance(height, int) and isinstance(width, int):
        factor = height // state.height
        if factor > 0 and (height, width) == (factor * state.height, factor * state.width):
            return factor
    top.refuse(
        "maps",
        f"null, as {name} is {value}, which is no whole multiple of the state's {state.height} x {state.width}",
    )
