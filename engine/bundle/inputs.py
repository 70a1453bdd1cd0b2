"""Inputs that a bundle declares: what a caller may hand in, how it is drawn otherwise, and its null for guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from engine.bundle.fields import Fields
from engine.bundle.limits import MAX_INPUTS
from engine.bundle.schema import Spec, read, take
from engine.bundle.tensors import BATCH, IMAGE_CHANNELS, STEPS, ByValue, Null, TensorSpec, parse_null

# Names with a meaning of their own in a pipeline, a request or a result.
RESERVED = (
    "x", "x0", "x_T", "noise", "timesteps", "rows", "e", "image", "images", "seeds", "weights", "start", "coefficients",
    "n", "steps", "setting", "seed", "spacing", "rho", "method", "eta", "t_start", "temperature", "noise_scale", "eps_scale",
    "guidance", "guidance_interval", "variance", "quantize_denoised", "clip", "prior", "callback", "stop", "progress",
    "budget_ms", "at_most", "anytime", "stream", "a", "b", "mode", "part", "step_ms", "edits", "preserve", "what", "value",
    "self", "masks", "known_noise", "composite", "text", "noise_level", "stages", "size", "guide_scale", "guide_mode",
    "guide_interval", "regularise", "regularise_interval",
)  # fmt: skip
INPUT_DTYPES = ("float32", "int64")
NORMAL, EACH_STEP = DRAWS = ("normal", "each_step")
PICTURES = ("image", "mask")


@dataclass(frozen=True, eq=False)
class InputSpec(ByValue, TensorSpec):
    """A declared input. shape[0] is "batch".

    draw     "normal": standard normals of the sample's own stream, or the bundle's fitted prior; "each_step": fresh ones
             for every row of the table, of another stream, [batch, "steps", ...]; None: it must be given
    picture  "image": a picture, float32 [batch, 1, 3 or 4, H, W] in [-1, 1]; "mask": float32 [batch, 1, H, W] in [0, 1], 1
             where something is to be filled in; None: something else
    null     one sample of what stands for "nothing" under guidance, an array that broadcasts to it; None: it has none
    """

    dtype: Annotated[str, Fields.choice, INPUT_DTYPES]
    draw: Annotated[str, Fields.choice, DRAWS] | None
    picture: Annotated[str, Fields.choice, PICTURES] | None
    null: Null | None

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of a picture."""
        channels, height, width = self.sample
        return int(channels), int(height), int(width)


def read_of_drawn(spec: type[Spec], top: Fields, key: str, inputs: tuple[InputSpec, ...]) -> Spec | None:
    """A field that may be null: the entry of what was fitted to the input that is drawn."""
    if top.take(key, "an object or null") is None:
        return None
    drawn = [entry.name for entry in inputs if entry.draw == NORMAL]
    if not drawn:
        top.refuse(key, "null, since no input is drawn")
    return read(spec, top.object(key), drawn=drawn)


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
        if found.draw is not None and any(other.draw == found.draw for other in inputs):
            fields.refuse("draw", "null: one input is drawn already, and a sample has one stream for it")
        inputs.append(found)
    return tuple(inputs)


def _input(fields: Fields) -> InputSpec:
    found = take(InputSpec, fields)
    shape, limits = found["shape"], found["range"]
    if not found["name"].isidentifier() or found["name"] in RESERVED:
        fields.refuse("name", f"an identifier, and none of {', '.join(RESERVED)}")
    if shape[0] != BATCH or BATCH in shape[1:]:
        fields.refuse("shape", f"{BATCH!r} as the first dimension, and only there")
    each, by_step = found["draw"] == EACH_STEP, shape[1:2] == (STEPS,)
    fixed = shape[2:] if each and by_step else shape[1:]
    drawable = found["dtype"] == "float32" and limits is None and not any(isinstance(d, str) for d in fixed)
    if found["draw"] is not None and not (drawable and by_step >= each):
        behind = f", but for {STEPS!r} behind {BATCH!r}" if each else ""
        fields.refuse("draw", f"null, unless the input is float32, unbounded and of fixed dimensions{behind}")
    kind = found["picture"]
    channels, expected = ((1,), (0.0, 1.0)) if kind == "mask" else (IMAGE_CHANNELS, (-1.0, 1.0))
    pictured = found["dtype"] == "float32" and len(shape) == 4 and limits == expected and shape[1] in channels
    if kind is not None and not (pictured and found["draw"] is None and all(isinstance(d, int) for d in shape[1:])):
        counts = " or ".join(map(str, channels))
        what = f"float32[batch, {counts}, H, W] in [{expected[0]:g}, 1], of fixed dimensions, and not drawn"
        fields.refuse("picture", f"null, unless the input is {what}")
    null = parse_null(fields, "null", shape[1:], found["dtype"], limits)
    fields.done()
    return InputSpec(**found, null=null)


def null_of(shape: tuple[int, ...], null: Null) -> Null:
    """A null as one sample of this shape."""
    return np.broadcast_to(null, shape).copy()  # np.ascontiguousarray would make [1] of a single number
