"""The fields of each request: the keyword arguments of the Sampler's verbs, as JSON, as far as a bundle has a use for them.

One table serves the reader (engine/http/reader.py), the OpenAPI document and the studio.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.abilities import autoencodes, takes_images, upscaled_input, upscales
from engine.bundle.inputs import InputSpec
from engine.bundle.limits import MAX_STRENGTH
from engine.bundle.manifest import Manifest
from engine.bundle.prior import PRIORS
from engine.bundle.tensors import BATCH, TensorSpec
from engine.cascade import BUDGETS
from engine.http.limits import Limits
from engine.inpaint import image_and_mask, inpaints
from engine.resolve import SETTINGS
from engine.serving.groups import low_image, starts_from_pixels
from engine.solver.guides import MODES
from engine.solver.regulariser import REGULARISE
from engine.solver.table import METHODS, VARIANCES
from engine.solver.timesteps import SPACINGS
from engine.stages import all_inputs, starts_from_image
from engine.text import TEXT
from engine.verbs import PRESERVE

Schema = Mapping[str, Any]
IMAGES, MASKS = "images", "masks"
WHOLE = "composite"  # of inpaint
STAGES = "stages"  # of a cascade
SIZE = "size"
SIZED = ("sample", "reconstruct", "refine", "upscale", "inpaint")  # the verbs that take one
SEEDS_END = 2**64 - 1


@dataclass(frozen=True)
class Field:
    """One keyword argument: its JSON schema, whether a request must have it, and the field that may stand for it."""

    name: str
    schema: Schema
    needed: bool = False
    instead: str = ""


def verbs_of(manifest: Manifest) -> tuple[str, ...]:
    """The verbs that this bundle has the abilities for."""
    starts, encodes = takes_images(manifest), bool(manifest.pipeline.encode)
    found = {
        "sample": True, "reconstruct": encodes and starts, "refine": starts, "edit": manifest.directions is not None,
        "interpolate": True, "upscale": upscales(manifest), "inpaint": inpaints(manifest),
    }  # fmt: skip
    return tuple(verb for verb, has in found.items() if has)


def fields_of(manifest: Manifest, verb: str, limits: Limits) -> dict[str, Field]:
    """The fields of a verb's request by name."""
    found: list[Field] = []
    if verb == "reconstruct" and autoencodes(manifest):
        return {field.name: field for field in (_images(limits), *_size(verb, limits))}
    if verb == "sample":
        found.append(_count("Images; may be left out where seed or an input says it.", limits))
    elif verb == "interpolate":
        found += _ends(manifest, limits)
    elif verb == "edit":
        found += _edit(manifest, limits)
    else:
        found.append(_images(limits))
    if verb == "inpaint":
        kept = "Put what was given back outside of the mask: there every pixel is then the one that was sent."
        found += [_masks(limits), Field(WHOLE, {"type": "boolean", "default": True, "description": kept})]
    found += [_seed(limits), *_size(verb, limits), *_setting(manifest, verb, limits), *_inputs(manifest, verb, limits)]
    if manifest.directions is not None and verb != "edit":
        found.append(Field("edits", _strengths(manifest)))
    return {field.name: field for field in found}


def setting_names(manifest: Manifest, verb: str, limits: Limits) -> tuple[str, ...]:
    """The fields of a verb that are options of its setting, or of the budget in its place."""
    return tuple(field.name for field in _setting(manifest, verb, limits))


def _count(text: str, limits: Limits) -> Field:
    return Field("n", {"type": "integer", "minimum": 1, "maximum": limits.max_batch, "description": text})


def _ends(manifest: Manifest, limits: Limits) -> list[Field]:
    drawn = manifest.drawn or TensorSpec("x_T", "float32", (BATCH, *manifest.pipeline.state.shape), None)
    one = {"oneOf": [_seed_number(), _array(drawn, batched=False)]}
    mode = "slerp" if manifest.drawn is None else "lerp"
    return [
        *(Field(name, {**one, "description": f"{where}: a seed, or one {drawn.name}."}, needed=True)
          for name, where in (("a", "The first image"), ("b", "The last image"))),
        _count("Images, both ends included.", limits),
        Field("mode", {"enum": ["lerp", "slerp"], "default": mode, "description": "Straight, or along the arc."}),
    ]  # fmt: skip


def _images(limits: Limits) -> Field:
    one = {"type": "string", "contentEncoding": "base64", "description": "A PNG, JPEG, WebP, GIF, BMP or AVIF file."}
    text = f"Pictures of at most {limits.max_pixels:,} pixels, as base64 or data: URLs."
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": limits.max_batch}
    return Field(IMAGES, {"oneOf": [one, many], "description": text}, needed=True)


def _masks(limits: Limits) -> Field:
    text = "White where to fill in, of the images' size: one each, or one for all."
    return Field(MASKS, {"oneOf": _images(limits).schema["oneOf"], "description": text}, needed=True)


def noised(manifest: Manifest, verb: str) -> bool:
    """Whether a chain of this verb may start from the noised pictures of its request."""
    blends = verb == "inpaint" and image_and_mask(manifest) is None and manifest.pipeline.state.start is None
    return verb in ("reconstruct", "refine") or blends


def _edit(manifest: Manifest, limits: Limits) -> list[Field]:
    assert manifest.drawn is not None, "a bundle with directions has an input that is drawn"
    kinds = [_seed_number(), {"type": "array", "items": _seed_number()}, _array(manifest.drawn), _images(limits).schema]
    text = f"Seeds, samples of {manifest.drawn.name}, or pictures as base64."
    kept = f"How much of the originals stays; {PRESERVE} for pictures, and seeds are sampled moved where it is left out."
    return [
        Field("what", {"oneOf": kinds, "description": text}, needed=True),
        Field("edits", _strengths(manifest), needed=True),
        Field("preserve", {"type": "number", "minimum": 0, "maximum": 1, "description": kept}),
    ]


def _strengths(manifest: Manifest) -> Schema:
    names = () if manifest.directions is None else manifest.directions.names
    one = {"type": "number", "minimum": -MAX_STRENGTH, "maximum": MAX_STRENGTH}
    strength = {"oneOf": [one, {"type": "array", "items": one}]}
    return {
        "type": "object", "properties": dict.fromkeys(names, strength), "additionalProperties": False,
        "description": "Strengths along the bundle's directions: 1 is the way from the mean without to the mean with.",
    }  # fmt: skip


def _seed_number() -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": SEEDS_END}


def _seed(limits: Limits) -> Field:
    many = {"type": "array", "items": _seed_number(), "minItems": 1, "maxItems": limits.max_batch}
    text = "Sample i uses seed + i, or the i-th of a list; drawn where there is none, and told in the answer."
    return Field("seed", {"oneOf": [_seed_number(), many], "description": text})


def _size(verb: str, limits: Limits) -> list[Field]:
    """The size of a request's images, where the server has others than its own."""
    if limits.max_size is None or verb not in SIZED:
        return []
    sides = [{"type": "integer", "minimum": 1, "maximum": side} for side in limits.max_size]
    text = "Height and width of the images that are made; the bundle says in which steps."
    return [Field(SIZE, {"type": "array", "prefixItems": sides, "minItems": 2, "maxItems": 2, "description": text})]


def _numbers(high: float | None, text: str) -> Schema:
    one = {"type": "number", "minimum": 0, **({} if high is None else {"maximum": high})}
    return {"oneOf": [one, {"type": "array", "items": one}], "description": f"{text} One number, or one a step."}


def _setting(manifest: Manifest, verb: str, limits: Limits) -> list[Field]:
    pipeline, T = manifest.pipeline, manifest.schedule.T
    timestep = {"type": "integer", "minimum": 0, "maximum": T - 1}
    found: dict[str, Schema] = {
        "steps": {"type": "integer", "minimum": 1, "maximum": T, "description": "Network calls, about."},
        "setting": {"enum": list(SETTINGS), "description": "The bundle's own for these steps, or the textbook's."},
        "timesteps": {"type": "array", "items": timestep, "maxItems": limits.max_steps, "description": "Falling."},
        "spacing": {"enum": list(SPACINGS), "description": "Which timesteps are kept."},
        "rho": {"type": "number", "description": "Of karras spacing."},
        "method": {"enum": list(METHODS), "description": "The solver."},
        "eta": _numbers(1, "DDIM's share of fresh noise."),
        "temperature": {"type": "number", "minimum": 0, "description": "Scale of the starting noise."},
        "noise_scale": _numbers(None, "Scale of the steps' noise."),
        "eps_scale": _numbers(None, "Scale of the network's eps."),
        "variance": {"enum": list(VARIANCES), "description": "DDPM's."},
        "clip": {"type": "boolean", "default": True, "description": "Limit each step's prediction."},
    }
    if (verb != "edit" and pipeline.state.start is not None) or noised(manifest, verb):
        found["t_start"] = {**timestep, "description": "Start from the noised start image at this timestep."}
    if verb in ("refine", "upscale"):
        text = "The noise that the pictures are given first, a timestep of the bundle's schedule; 0 is none."
        found["noise_level"] = {**timestep, "description": text}
    if pipeline.guided:
        found["guidance"] = {"type": "number", "description": "Weight; not 0 doubles the network's work."}
        text = "Timesteps, the lower one first, between which guidance applies, both included."
        found["guidance_interval"] = {"type": "array", "items": timestep, "minItems": 2, "maxItems": 2, "description": text}
    if pipeline.guides:
        found["guide_scale"] = {"type": "number", "description": "Of the guides' gradient; 0 runs none."}
        found["guide_mode"] = {"enum": list(MODES), "description": "How the scale goes by each sample."}
        text = "Timesteps, the lower one first, between which guides run, both included."
        found["guide_interval"] = {"type": "array", "items": timestep, "minItems": 2, "maxItems": 2, "description": text}
    if pipeline.regulariser is not None:
        found["regularise"] = {"enum": list(REGULARISE), "description": "Where the second network comes in."}
        text = "Timesteps, the lower one first, between which it runs, both included."
        interval = {"type": "array", "items": timestep, "minItems": 2, "maxItems": 2}
        found["regularise_interval"] = {**interval, "description": text}
    if pipeline.quantize is not None:
        found["quantize_denoised"] = {"type": "boolean", "description": "Look each step's prediction up in the codebook."}
    if manifest.drawn is not None and verb in ("sample", "edit", "interpolate"):
        found["prior"] = {"enum": list(PRIORS), "description": f"What {manifest.drawn.name} is drawn from."}
    if manifest.fitted is not None and verb == "sample":
        found["budget_ms"] = {
            "type": "number", "exclusiveMinimum": 0,
            "description": "Milliseconds from arrival to images: takes the best fitted setting that keeps it.",
        }  # fmt: skip
        found["at_most"] = {"type": "boolean", "description": "With a budget that none keeps: the fastest."}
        found["anytime"] = {"type": "boolean", "description": "With a budget: end a late chain with what it has."}
    return [Field(name, schema) for name, schema in found.items()]


def _inputs(manifest: Manifest, verb: str, limits: Limits) -> list[Field]:
    """The bundle's own, but for those that a verb makes itself; and text, where it stands for one of them."""
    made: set[str] = set()
    if verb == "reconstruct":
        made = {value for call in manifest.pipeline.encode for value in call.outputs.values()}
    if verb in ("edit", "interpolate") and manifest.drawn is not None:
        made = {manifest.drawn.name}
    given = verb in ("sample", "edit", "interpolate", "upscale")
    if verb == "upscale":
        made = {upscaled_input(manifest, verb).name}
    if verb in ("refine", "upscale") and manifest.augmentation is not None:
        made.add(manifest.augmentation.input)
    if verb == "inpaint" and (pair := image_and_mask(manifest)) is not None:
        made, given = {spec.name for spec in pair}, True
    worded = [] if manifest.text is None else [manifest.text.input]
    grown = (manifest.pipeline.maps or {}) if limits.max_size is not None else {}
    return _declared([spec for spec in manifest.inputs if spec.name not in made], worded, limits, given=given, grown=grown)


def _declared(
    specs: Sequence[InputSpec], worded: Sequence[str], limits: Limits, *, given: bool, grown: Collection[str] = ()
) -> list[Field]:
    """Inputs, those in `worded` with a text that stands for them. given: whether a request must have what is not drawn.
    grown: those that are as large as the size of a request says."""
    found = [
        Field(
            spec.name,
            _array(spec, free=spec.name in grown) if spec.picture is None else _images(limits).schema,
            needed=spec.draw is None and given,
            instead=TEXT if spec.name in worded else "",
        )
        for spec in specs
    ]
    return [*found, *(_text(field.name, limits) for field in found if field.instead)]


def fields_of_cascade(manifests: Sequence[Manifest], limits: Limits) -> dict[str, Field]:
    """The fields of `sample` of a cascade: those of the first stage but a budget, what any stage takes, and `stages`."""
    first, *later = manifests
    worded = list(dict.fromkeys(stage.text.input for stage in manifests if stage.text is not None))
    found = [_count("Images; may be left out where seed or an input says it.", limits), _seed(limits)]
    found += [field for field in _setting(first, "sample", limits) if field.name not in BUDGETS]
    found += _declared(all_inputs(manifests), worded, limits, given=True)
    if first.directions is not None:
        found.append(Field("edits", _strengths(first)))
    ways = [stage_fields(stage, limits) for stage in later]
    properties = [{name: field.schema for name, field in fields.items()} for fields in ways]
    one = [{"type": "object", "properties": each, "additionalProperties": False} for each in properties]
    text = "The options of each stage after the first, over what the bundle before it records."
    schema = {"type": "array", "prefixItems": one, "minItems": len(one), "maxItems": len(one), "description": text}
    return {field.name: field for field in (*found, Field(STAGES, schema))}


def stage_fields(manifest: Manifest, limits: Limits) -> dict[str, Field]:
    """The options of a cascade's stage after the first."""
    verb = "refine" if starts_from_image(manifest) else "upscale"
    return {field.name: field for field in _setting(manifest, verb, limits)}


def _text(name: str, limits: Limits) -> Field:
    one = {"type": "string"}
    many = {"type": "array", "items": one, "minItems": 1, "maxItems": limits.max_batch}
    return Field(TEXT, {"oneOf": [one, many], "description": f"In place of {name}: one for all, or one each."})


def _array(spec: TensorSpec, batched: bool = True, free: bool = False) -> Schema:
    """Nested lists of an input, `free` in their lengths; where a request holds several, one sample stands for all."""
    number: dict[str, Any] = {"type": "integer" if spec.dtype == "int64" else "number"}
    if spec.range is not None:
        number |= {"minimum": spec.range[0], "maximum": spec.range[1]}
    schema: Schema = number
    for size in reversed(spec.sample):
        fixed = {"minItems": size, "maxItems": size} if isinstance(size, int) and not free else {}
        schema = {"type": "array", "items": schema, **fixed}
    if not batched:
        return schema
    several = {"type": "array", "items": schema}
    return {"oneOf": [schema, several], "description": f"{spec}: one sample for all, or one each."}


def outputs_of(manifest: Manifest) -> tuple[str, ...]:
    """What `?outputs=` may name: the images, the image that the chain may start from, the input that is drawn."""
    start, drawn = manifest.pipeline.state.start, manifest.drawn
    found = ["image", *([start] if start is not None else []), *([drawn.name] if drawn is not None else [])]
    return tuple(dict.fromkeys(found))


def pictures_of(manifest: Manifest) -> tuple[str, ...]:
    """Those outputs that are pictures."""
    start = manifest.pipeline.state.start
    return ("image", start) if start is not None and starts_from_pixels(manifest) else ("image",)


def pictures_of_cascade(stages: int) -> tuple[str, ...]:
    """The outputs of a cascade, which are the pictures of every stage, those of the last one first."""
    return ("image", *(low_image(stage) for stage in range(1, stages)))
