"""Inputs that a bundle declares: what a caller may hand in, how it is drawn otherwise, and its null for guidance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bundle.fields import Fields
from engine.bundle.limits import MAX_INPUTS
from engine.bundle.tensors import BATCH, ByValue, Null, TensorSpec, parse_null, parse_range, parse_shape

# Names with a meaning of their own in a pipeline, a request or a result.
RESERVED = (
    "x", "x_T", "noise", "timesteps", "rows", "e", "image", "images", "seeds", "weights", "start", "coefficients",
    "n", "steps", "seed", "method", "spacing", "eta", "t_start", "temperature", "guidance", "variance", "clip", "prior",
    "callback", "progress", "stream", "a", "b", "mode", "step_ms",
)  # fmt: skip
INPUT_DTYPES = ("float32", "int64")


@dataclass(frozen=True, eq=False)
class InputSpec(ByValue, TensorSpec):
    """A declared input. shape[0] is "batch".

    draw   "normal": standard normals of the sample's own stream, or the bundle's fitted prior; None: it must be given
    null   one sample of what stands for "nothing" under guidance, an array that broadcasts to it; None: it has none
    """

    draw: str | None
    null: Null | None


def parse_inputs(top: Fields) -> tuple[InputSpec, ...]:
    """The list `inputs`, which may be empty."""
    entries = top.objects("inputs", "a list of inputs, which may be empty", empty=True)
    if len(entries) > MAX_INPUTS:
        top.refuse("inputs", f"at most {MAX_INPUTS} inputs")
    inputs: list[InputSpec] = []
    for fields in entries:
        found = _input(fields)
        if found.name in [other.name for other in inputs]:
            fields.refuse("name", "a name of its own")
        if found.draw is not None and any(other.draw is not None for other in inputs):
            fields.refuse("draw", "null: one input is drawn already, and a sample has one stream for it")
        inputs.append(found)
    return tuple(inputs)


def _input(fields: Fields) -> InputSpec:
    name = fields.text("name")
    if not name.isidentifier() or name in RESERVED:
        fields.refuse("name", f"an identifier, and none of {', '.join(RESERVED)}")
    dtype = fields.choice("dtype", INPUT_DTYPES)
    shape = parse_shape(fields)
    if shape[0] != BATCH or BATCH in shape[1:]:
        fields.refuse("shape", f"{BATCH!r} as the first dimension, and only there")
    limits = parse_range(fields)
    draw = None if fields.is_null("draw") else fields.choice("draw", ("normal",))
    fields.take("draw", "'normal' or null")
    if draw is not None and (dtype != "float32" or any(isinstance(d, str) for d in shape[1:]) or limits is not None):
        fields.refuse("draw", "null, unless the input is float32, unbounded and of fixed dimensions")
    null = parse_null(fields, "null", shape[1:], dtype, limits)
    fields.done()
    return InputSpec(name, dtype, shape, limits, draw, null)


def null_of(shape: tuple[int, ...], null: Null) -> Null:
    """A null as one sample of this shape."""
    return np.broadcast_to(null, shape).copy()  # np.ascontiguousarray would make [1] of a single number
