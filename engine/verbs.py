"""What a Sampler can be asked beside samples of seeds: each verb as a checked request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engine import abilities, augmentation, checks, damage, kernels, resolve
from engine.argument_checks import check_number, check_numbers, is_integer
from engine.bundle.directions import checked_edits
from engine.bundle.inputs import InputSpec
from engine.bundle.limits import MAX_STRENGTH
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import X
from engine.errors import ArgumentError
from engine.pipeline import Arrays, Pipeline
from engine.request import Request
from engine.resolve import OPTIONS, resolve_request
from engine.result import F32, U8, Batch
from engine.solver import noise as noises
from engine.solver.timesteps import LEADING, nearest_start

PRESERVE = 0.9  # what `edit` keeps of images where the caller does not say
# Taken off the change of the start value, of a range of 2: a direction moves every pixel a little, and what it moves little
# it should not touch.
SLACK = np.float32(0.1)


def interpolate(
    pipeline: Pipeline,
    ends: tuple[Any, Any],
    n: int,
    mode: str | None,
    part: tuple[int, int] | None,
    options: Mapping[str, Any],
) -> Request:
    """n samples from one end to the other, or those of them that `part` says, with the noise of one seed."""
    manifest = pipeline.manifest
    options = resolve.taken(pipeline, options, OPTIONS, "interpolate")
    moved = "x_T" if manifest.drawn is None else manifest.drawn.name
    if options.get(moved) is not None:
        raise ArgumentError(f"interpolate moves {moved} from a to b; expected it not given too. Leave it out.")
    given, prior = path(pipeline, ends, n, mode, part, options.get("seed"), options.get("prior"))
    return _said(resolve_request(pipeline, {**options, **given, "prior": None}, "interpolate"), prior)


def path(
    pipeline: Pipeline,
    ends: tuple[Any, Any],
    n: int,
    mode: str | None,
    part: tuple[int, int] | None,
    seed: Any,
    prior: str | None,
) -> tuple[Arrays, str | None]:
    """The drawn input of an interpolation (x_T without one) and its seeds, and what an end that is a seed was drawn from."""
    drawn = pipeline.manifest.drawn
    count = checks.count_of(n) or 1
    begin, end = part or (0, count)
    if not 0 <= begin < end <= count:
        raise ArgumentError(f"part is {part!r}; expected (begin, end) with 0 <= begin < end <= n, which is {count}.")
    prior = resolve.choose_prior(pipeline.manifest, prior, draws=drawn is not None and any(map(is_integer, ends)))
    a, b = (abilities.end_of(pipeline, end, name, drawn, prior) for end, name in zip(ends, "ab", strict=True))
    shared = noises.resolve_seeds(ends[0] if seed is None and is_integer(ends[0]) else seed, 1)
    mode = ("slerp" if drawn is None else "lerp") if mode is None else mode
    between = checks.between(a.ravel(), b.ravel(), count, mode, slice(begin, end))
    moved = "x_T" if drawn is None else drawn.name
    return {moved: between.reshape(-1, *a.shape), "seed": np.repeat(shared, end - begin)}, prior


def mix(pipeline: Pipeline, what: Any, weights: Any, options: Mapping[str, Any]) -> Request:
    """One sample of the weighted mean of several samples of the drawn input."""
    manifest = pipeline.manifest
    options = resolve.taken(pipeline, options, OPTIONS, "mix")
    drawn, way = abilities.drawn_input(manifest, "mix"), way_of(manifest, what)
    if options.get(drawn.name) is not None:
        raise ArgumentError(f"mix makes {drawn.name} itself; expected it not given too. Leave it out.")
    prior = resolve.choose_prior(manifest, options.get("prior"), draws=way == "seeds")
    seed = options.get("seed")
    if way == "seeds":
        seeds = noises.resolve_seeds(what, None)
        z, seed = pipeline.draw(seeds, prior)[drawn.name], int(seeds[0]) if seed is None else seed
    elif way == "latents":
        z = checks.input_of(drawn, what)
    else:
        z = _encoded(pipeline, what, "mix")[2][drawn.name]
    given = (1.0,) * len(z) if weights is None else check_numbers("weights", weights, -MAX_STRENGTH, MAX_STRENGTH)
    shares = np.array(given, np.float64)
    if shares.shape != (len(z),) or len(z) < 2 or abs(shares.sum()) < 1e-6:
        raise ArgumentError(
            f"mix was given {len(z)} {way} and the weights {list(shares.ravel())}; expected two or more, and one weight "
            "each with another sum than 0."
        )
    mean = np.tensordot(shares / shares.sum(), z.astype(np.float64), 1)[None].astype(np.float32)
    return _said(resolve_request(pipeline, {**options, drawn.name: mean, "seed": seed, "prior": None}, "mix"), prior)


def _said(request: Request, prior: str | None) -> Request:
    """The request of an input that was made of draws: its setting says what they came from."""
    return replace(request, setting=replace(request.setting, prior=prior))


def decode(pipeline: Pipeline, value: Any, inputs: Mapping[str, Any]) -> U8:
    """The start value that the pipeline makes of inputs, as pixels [N, H, W, C]."""
    start, specs = _made_start(pipeline.manifest, "decode"), pipeline.manifest.inputs
    if value is not None:
        inputs = {abilities.drawn_input(pipeline.manifest, "decode").name: value, **inputs}
    inputs = resolve.taken(pipeline, inputs, (), "decode")
    arrays = {spec.name: checks.input_of(spec, inputs[spec.name]) for spec in specs if spec.name in inputs}
    needed = [spec.name for spec in specs if spec.name in pipeline.spec.inputs_for((start,), set())]
    if missing := [name for name in needed if name not in arrays]:
        raise ArgumentError(f"decode: found no {', '.join(missing)}, expected {', '.join(needed)}. Pass them by name.")
    return kernels.to_uint8(pipeline.decode(arrays))


def _made_start(manifest: Manifest, what: str) -> str:
    """The start value, where the pipeline makes one of inputs."""
    start = manifest.pipeline.state.start
    if start is None or start in [spec.name for spec in manifest.inputs]:
        raise abilities.lacks(manifest, what, "a start value that its pipeline makes of inputs")
    return start


def way_of(manifest: Manifest, what: Any) -> str:
    """What a caller means: seeds are integers, alone or listed, latents have the drawn input's shape, the rest is images."""
    array, sample = np.asarray(what), abilities.drawn_input(manifest, "edit").sample
    if is_integer(what) or (array.dtype.kind in "iu" and array.ndim == 1):
        return "seeds"
    return "latents" if array.dtype.kind == "f" and sample in (array.shape, array.shape[1:]) else "images"


def reconstruct(pipeline: Pipeline, images: Any, options: Mapping[str, Any]) -> Request:
    """Encode images to inputs, and sample from those, started from the noised images."""
    options = resolve.taken(pipeline, options, OPTIONS, "reconstruct")
    _, state, encoded = _encoded(pipeline, images, "reconstruct")
    abilities.refuse_given(options, encoded, "reconstruct")
    return resolve_request(pipeline, {**options, **encoded}, "reconstruct", start=state, noised_image=True)


def autoencode(pipeline: Pipeline, images: Any, options: Mapping[str, Any]) -> Batch:
    """Images through `encode` and `after`: what `reconstruct` is where the encoder makes the state alone."""
    manifest = pipeline.manifest
    given = [name for name, value in options.items() if value is not None and name != "progress"]
    if given:
        raise ArgumentError(
            f"reconstruct encodes and decodes on this bundle, without a step between; expected no options, found "
            f"{', '.join(given)}. Leave them out, or call refine(images, t_start=...)."
        )
    after = manifest.pipeline.after
    there = {X, *(value for call in after for value in call.outputs.values())}
    fed = [value for call in after for value in call.inputs.values()]
    if needed := ", ".join(sorted(pipeline.spec.inputs_for(fed, there))):
        raise abilities.lacks(manifest, "reconstruct", f"an encoder to {needed}, or a decoder that takes none of it")
    return pipeline.autoencode(abilities.start_pixels(manifest, images, "reconstruct"))


def refine(pipeline: Pipeline, images: Any, noise_level: Any, options: Mapping[str, Any]) -> Request:
    """Let the images, at a noise level, stand for the pipeline's start value."""
    manifest = pipeline.manifest
    options = resolve.taken(pipeline, options, OPTIONS, "refine")
    options = augmentation.with_level(manifest, options, noise_level, "refine")
    level = augmentation.checked_level(manifest, noise_level)
    start = manifest.pipeline.state.start
    pixels = abilities.start_pixels(manifest, images, "refine")
    if level:
        options["seed"] = noises.resolve_seeds(options.get("seed"), len(pixels))
        pixels = (augmentation.augmented(pipeline, 2 * pixels - 1, options["seed"], level) + np.float32(1)) / np.float32(2)
    options = damage.with_start(pipeline, pixels, options)
    replaced = () if start is None else (start,)
    needed = [spec.name for spec in pipeline.needed(dict.fromkeys(replaced))]
    missing = [name for name in needed if options.get(name) is None]
    spec = manifest.pipeline
    found = pipeline.encode(pixels) if spec.encode and (missing or spec.encodes_state) else {}
    encoded = {name: value for name, value in found.items() if name in missing}
    state = abilities.start_state(pipeline, pixels, found)
    given = dict.fromkeys(replaced, state)
    request = resolve_request(pipeline, {**options, **encoded}, "refine", start=state, given=given)
    check_refines(manifest, request.setting.t_start)
    return request


def check_refines(manifest: Manifest, t_start: int | None) -> None:
    """ArgumentError for a chain that would not know the image."""
    if abilities.forgets(manifest, t_start):
        raise ArgumentError(
            "refine on a bundle without a start value has nothing to refine from: found no t_start, expected "
            "one. Pass t_start, for example t_start=400, and steps."
        )


def upscale(pipeline: Pipeline, images: Any, noise_level: Any, options: Mapping[str, Any]) -> Request:
    """One sample of each image, which, at a noise level, is the one picture that the bundle takes."""
    manifest = pipeline.manifest
    options = resolve.taken(pipeline, options, OPTIONS, "upscale")
    options = augmentation.with_level(manifest, options, noise_level, "upscale")
    level = augmentation.checked_level(manifest, noise_level)
    spec = _picture(manifest, options)
    pixels = checks.images_of(images, spec.picture_shape)
    request = resolve_request(pipeline, {**options, spec.name: 2 * pixels - 1}, "upscale", n=len(pixels))
    # Noised after the checks: it may well leave the range that a picture has.
    picture = augmentation.augmented(pipeline, request.inputs[spec.name], request.seeds, level)
    return replace(request, inputs={**request.inputs, spec.name: picture})


def _picture(manifest: Manifest, options: Mapping[str, Any]) -> InputSpec:
    """The input that the images of `upscale` become; refuses it beside them."""
    spec = abilities.upscaled_input(manifest, "upscale")
    if options.get(spec.name) is not None:
        raise ArgumentError(f"upscale takes {spec.name} from the images; expected none beside them. Leave {spec.name} out.")
    return spec


def check_stage(pipeline: Pipeline, n: int, noise_level: Any, options: Mapping[str, Any]) -> None:
    """Refuse what `upscale` or, where the bundle takes no picture, `refine` of n images would, before there are any."""
    manifest = pipeline.manifest
    verb = "upscale" if abilities.upscales(manifest) else "refine"
    options = resolve.taken(pipeline, options, OPTIONS, verb)
    options = augmentation.with_level(manifest, options, noise_level, verb)
    augmentation.checked_level(manifest, noise_level)
    options["seed"] = 0 if options.get("seed") is None else options["seed"]
    unseen = np.zeros((n, 0), np.float32)  # n of them, of which nothing is looked at
    if verb == "upscale":
        resolve_request(pipeline, options, verb, n=n, given={_picture(manifest, options).name: unseen})
        return
    options, spec = damage.with_start(pipeline, None, options), manifest.pipeline
    encoded = (value for call in spec.encode for value in call.outputs.values() if options.get(value) is None)
    replaced = () if spec.state.start is None else (spec.state.start,)
    made = dict.fromkeys((*replaced, *encoded), unseen)
    request = resolve_request(pipeline, options, verb, start=unseen, given=made)
    check_refines(manifest, request.setting.t_start)


def edit(pipeline: Pipeline, what: Any, edits: Any, preserve: float | None, options: Mapping[str, Any]) -> Request:
    """Move what there is along the bundle's directions: images, seeds, or samples of the drawn input."""
    manifest = pipeline.manifest
    options = resolve.taken(pipeline, options, OPTIONS, "edit")
    drawn = abilities.drawn_input(manifest, "edit")
    checked_edits(manifest.directions, edits)
    if options.get("edits") is not None or options.get(drawn.name) is not None:
        raise ArgumentError(f"edit moves {drawn.name} itself; expected neither edits nor {drawn.name} among its options.")
    way = way_of(manifest, what)
    if way == "images":
        abilities.need_pixel_state(manifest, "edit")
        pixels, _, encoded = _encoded(pipeline, what, "edit")
        abilities.refuse_given(options, encoded, "edit")
        return _from_images(pipeline, pixels, encoded, edits, PRESERVE if preserve is None else preserve, options)
    if way == "seeds" and options.get("seed") is not None:
        raise ArgumentError("edit was given seeds, and seed too; expected one of the two. Leave seed out.")
    sample = {**options, "seed" if way == "seeds" else drawn.name: what}
    if preserve is None:
        return resolve_request(pipeline, {**sample, "edits": edits}, "edit")
    original = pipeline.run(resolve_request(pipeline, sample, "edit"))
    inputs = {spec.name: original.values[spec.name] for spec in manifest.inputs if spec.name in original.values}
    again = {**options, "seed": original.seeds, "prior": None}
    request = _from_images(pipeline, (original.x + np.float32(1)) / np.float32(2), inputs, edits, preserve, again)
    return _said(request, original.setting.prior)


def _encoded(pipeline: Pipeline, images: Any, what: str) -> tuple[F32, F32, Arrays]:
    """Images [N, C, H, W] in [0, 1], and the state and the inputs that they are encoded to."""
    abilities.need_encoder(pipeline.manifest, what)
    pixels = abilities.start_pixels(pipeline.manifest, images, what)
    values = pipeline.encode(pixels)
    return pixels, abilities.start_state(pipeline, pixels, values), abilities.declared(pipeline.manifest, values)


def _from(pipeline: Pipeline, t_start: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that starts at t_start: the recorded one stretched to it, where that starts from an image too and the
    caller names nothing else; otherwise the plain one, from the nearest start that a spacing which the caller names has."""
    recorded = pipeline.manifest.defaults
    named = [name for name in checks.REPLACES_RECORDED if options.get(name) is not None]
    if recorded.t_start and recorded.timesteps and not named:
        stretched = [round(t * t_start / recorded.t_start) for t in recorded.timesteps]
        if len(set(stretched)) == len(stretched):
            kept = ("method", "eta", "temperature", "noise_scale", "eps_scale", "guidance")
            return {**{name: getattr(recorded, name) for name in kept}, "timesteps": stretched, "t_start": t_start}
    if options.get("timesteps") is not None:
        return {"t_start": t_start, "steps": None}
    spacing = options.get("spacing")
    steps = options.get("steps") or (recorded.steps if spacing in LEADING else min(recorded.steps, t_start + 1))
    return {"t_start": nearest_start(pipeline.schedule.alpha_bar, steps, spacing, t_start), "steps": steps}


def _from_images(
    pipeline: Pipeline, pixels: F32, inputs: Arrays, edits: Any, preserve: float, options: Mapping[str, Any]
) -> Request:
    """The chain of the originals, changed as the start value changes with the moved input."""
    manifest = pipeline.manifest
    kept = check_number("preserve", preserve, 0.0, 1.0)
    if options.get("t_start") is not None:
        raise ArgumentError("edit was given t_start, which preserve says; expected one of the two. Leave t_start out.")
    start = _made_start(manifest, "edit")
    setting = _from(pipeline, round((1 - kept) * (manifest.schedule.T - 1)), options)
    given = {name: value for name, value in options.items() if value is not None}
    image, drawn = 2 * pixels - 1, abilities.drawn_input(manifest, "edit").name
    request = resolve_request(pipeline, {**setting, **given, **inputs, "edits": edits}, "edit", start=image)
    was, now = (pipeline.decode({**request.inputs, drawn: z}) for z in (inputs[drawn], request.inputs[drawn]))
    change = now - was
    blend = np.clip(image + np.sign(change) * np.maximum(np.abs(change) - SLACK, 0), -1, 1)
    return replace(request, start=blend, given={start: blend})
