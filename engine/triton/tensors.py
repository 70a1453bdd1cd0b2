"""Tensors of the served model: what it takes and gives, read off a manifest once for configuration and server alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.serving.groups import CALLS, IMAGE, low_image, starts_from_pixels
from engine.stages import all_inputs, starts_from_image
from engine.text import TEXT

KINDS = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}
NUMPY = {
    "TYPE_INT64": np.dtype(np.int64),
    "TYPE_INT32": np.dtype(np.int32),
    "TYPE_FP32": np.dtype(np.float32),
    "TYPE_UINT8": np.dtype(np.uint8),
    "TYPE_STRING": np.dtype(np.object_),
    "TYPE_BOOL": np.dtype(np.bool_),
}
FREE = -1  # Triton's word for a dimension that a request decides


@dataclass(frozen=True)
class Tensor:
    """One input or output of a sample; the batch dimension comes before `dims`."""

    name: str
    kind: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True

    def fits(self, shape: tuple[int, ...], n: int) -> bool:
        """Whether an array of this shape holds n samples."""
        wanted = (n, *self.dims)
        return len(shape) == len(wanted) and all(w in (FREE, found) for w, found in zip(wanted, shape, strict=True))


SEED = Tensor("seed", "TYPE_INT64", optional=False)
# The setting of a sample, named as for `Sampler.sample`.
SETTING = (
    Tensor("steps", "TYPE_INT32"),
    Tensor("setting", "TYPE_STRING"),
    Tensor("timesteps", "TYPE_INT32", (FREE,)),
    Tensor("spacing", "TYPE_STRING"),
    Tensor("rho", "TYPE_FP32"),
    Tensor("method", "TYPE_STRING"),
    Tensor("eta", "TYPE_FP32", (FREE,)),  # this and the scales: one number, or one a step
    Tensor("temperature", "TYPE_FP32"),
    Tensor("noise_scale", "TYPE_FP32", (FREE,)),
    Tensor("eps_scale", "TYPE_FP32", (FREE,)),
)
T_START = Tensor("t_start", "TYPE_INT32")  # needs an image to start from
# Need a null; the interval is (low, high), timesteps.
GUIDANCE = (Tensor("guidance", "TYPE_FP32"), Tensor("guidance_interval", "TYPE_INT32", (2,)))
# Need a guide; the interval is (low, high), timesteps.
GUIDES = (
    Tensor("guide_scale", "TYPE_FP32"),
    Tensor("guide_mode", "TYPE_STRING"),
    Tensor("guide_interval", "TYPE_INT32", (2,)),
)
# Need a second network; likewise.
REGULARISER = (Tensor("regularise", "TYPE_STRING"), Tensor("regularise_interval", "TYPE_INT32", (2,)))
QUANTIZE = Tensor("quantize_denoised", "TYPE_BOOL")  # needs a codebook
BUDGET = (Tensor("budget_ms", "TYPE_FP32"), Tensor("at_most", "TYPE_BOOL"))  # need fitted settings to choose from
EDITS = Tensor("edits", "TYPE_STRING")  # JSON: {"glasses": 1.0}; needs directions
WORDS = Tensor(TEXT, "TYPE_STRING")  # UTF-8; needs a vocabulary, and stands for the input that it becomes
TOOK, KEPT = "took_ms", "kept"  # what became of a budget, beside CALLS
PROMISE = (
    Tensor(CALLS, "TYPE_INT32", optional=False),
    Tensor(TOOK, "TYPE_FP32", optional=False),
    Tensor(KEPT, "TYPE_BOOL", optional=False),
)
STEP, TIMESTEP, FINAL = "step", "timestep", "final"  # which step's images a response of a model with previews holds
# Of each stage of a cascade after the first, counted from 2: steps_2, ...
STAGE_T_START, STAGE_GUIDANCE = Tensor("t_start", "TYPE_INT32"), Tensor("guidance", "TYPE_FP32")
STAGE = (Tensor("steps", "TYPE_INT32"), STAGE_T_START, Tensor("noise_level", "TYPE_INT32"), STAGE_GUIDANCE)
PROGRESS = (
    Tensor(STEP, "TYPE_INT32", optional=False),
    Tensor(TIMESTEP, "TYPE_INT32", optional=False),
    Tensor(FINAL, "TYPE_BOOL", optional=False),
)


def inputs_of(manifest: Manifest, later: Sequence[Manifest] = ()) -> tuple[Tensor, ...]:
    """Every input: the seed, the bundle's own (optional where they are drawn, or text stands for them), the setting, edits
    and text. later: the stages after it, of a cascade."""
    edits = (EDITS,) if manifest.directions is not None else ()
    words = (WORDS,) if any(stage.text is not None for stage in (manifest, *later)) else ()
    return (SEED, *declared_of(manifest, later), *setting_of(manifest, later), *stages_of(later), *edits, *words)


def declared_of(manifest: Manifest, later: Sequence[Manifest] = ()) -> tuple[Tensor, ...]:
    """The inputs that the bundle, or a stage after it, declares; what guides alone read can be left out where none runs."""
    stages = (manifest, *later)
    spare = {stage.text.input for stage in stages if stage.text is not None}
    if any(stage.pipeline.guides for stage in stages):
        needed = {name for stage in stages for name in stage.pipeline.inputs_for(stage.pipeline.run_values(), frozenset())}
        spare |= {spec.name for spec in all_inputs(stages)} - needed
    return tuple(
        Tensor(spec.name, KINDS[spec.dtype], _dims(spec), optional=spec.draw is not None or spec.name in spare)
        for spec in all_inputs(stages)
    )


def stages_of(later: Sequence[Manifest]) -> tuple[Tensor, ...]:
    """The inputs that are options of the stages of a cascade after the first."""
    return tuple(
        replace(tensor, name=of_stage(tensor.name, stage))
        for stage, manifest in enumerate(later, 2)
        for tensor in STAGE
        if tensor is not STAGE_T_START or starts_from_image(manifest) or manifest.pipeline.state.start is not None
        if tensor is not STAGE_GUIDANCE or manifest.pipeline.guided
    )


def of_stage(name: str, stage: int) -> str:
    """The tensor of an option of a cascade's stage, counted from 1."""
    return f"{name}_{stage}"


def setting_of(manifest: Manifest, later: Sequence[Manifest] = ()) -> tuple[Tensor, ...]:
    """The inputs that are options of `Sampler.sample`, as far as the pipeline has a use for them; a cascade has no
    budget."""
    pipeline = manifest.pipeline
    return (
        *SETTING,
        *((T_START,) if pipeline.state.start is not None else ()),
        *(GUIDANCE if pipeline.guided else ()),
        *(GUIDES if pipeline.guides else ()),
        *(REGULARISER if pipeline.regulariser is not None else ()),
        *((QUANTIZE,) if pipeline.quantize is not None else ()),
        *(BUDGET if manifest.fitted is not None and not later else ()),
    )


def outputs_of(manifest: Manifest, previews: bool, later: Sequence[Manifest] = ()) -> tuple[Tensor, ...]:
    """Every output: the images, the image that the chain may start from, the input that is drawn, what a budget came to, and
    the step, where there are previews. Of a cascade the images of every stage.

    What a client had to give it has already; a start that is no picture (a latent one) is sent as the numbers it is.
    """
    if later:
        lower = [_image(low_image(stage), made) for stage, made in enumerate((manifest, *later[:-1]), 1)]
        return (_image(IMAGE, later[-1]), *lower)
    channels, height, width = manifest.pipeline.image_shape
    found = [Tensor(IMAGE, "TYPE_UINT8", (height, width, channels), optional=False)]
    start, drawn = manifest.pipeline.state.start, manifest.drawn
    if start is not None and starts_from_pixels(manifest):
        found.append(Tensor(start, "TYPE_UINT8", (height, width, channels), optional=False))
    elif start is not None:
        found.append(Tensor(start, "TYPE_FP32", manifest.pipeline.state.shape, optional=False))
    if drawn is not None and drawn.name != start:
        found.append(Tensor(drawn.name, KINDS[drawn.dtype], _dims(drawn), optional=False))
    return (*found, *(PROMISE if manifest.fitted is not None else ()), *(PROGRESS if previews else ()))


def _image(name: str, manifest: Manifest) -> Tensor:
    channels, height, width = manifest.pipeline.image_shape
    return Tensor(name, "TYPE_UINT8", (height, width, channels), optional=False)


def _dims(spec: InputSpec) -> tuple[int, ...]:
    """The dimensions of one sample; Triton knows no tensor without any, so a single number is [1]."""
    return tuple(size if isinstance(size, int) else FREE for size in spec.sample) or (1,)
