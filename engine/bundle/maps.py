"""Maps: the values of a pipeline that lie over the state as x does, so many of their pixels to one of the state's.

Where all that the calls make of maps is maps again, and of nothing else, they can be made on windows of a larger picture
(engine/bundle/canvas.py). Which inputs are maps is in the manifest; the rest follows from the calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.bundle.fields import Fields
from engine.bundle.pipeline import IMAGE, VARIANCE, X0, E, PipelineSpec, Value, X
from engine.bundle.tensors import BATCH

STATES = (X, X0, E, VARIANCE)  # which are the state's own shape, as its reader has seen to

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
    """How many pixels of a value one of the state's has a side."""
    state, sizes = spec.state, value.shape[2:]
    height, width = sizes if len(sizes) == 2 else (None, None)
    if value.shape[0] == BATCH and isinstance(height, int) and isinstance(width, int):
        factor = height // state.height
        if factor > 0 and (height, width) == (factor * state.height, factor * state.width):
            return factor
    top.refuse(
        "maps",
        f"null, as {name} is {value}, which is no whole multiple of the state's {state.height} x {state.width}",
    )
