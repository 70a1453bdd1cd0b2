"""Images with a hole, as a checked request: by a network that takes image and mask, or by blending the known part in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from engine import abilities, checks, resolve
from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.bundle.tensors import BATCH
from engine.errors import ArgumentError
from engine.pipeline import Pipeline
from engine.request import Blend, Request
from engine.resolve import OPTIONS, resolve_request
from engine.result import F32, U8


class Holed(NamedTuple):
    """Images with a hole: float32 [N, C, H, W] in [0, 1] and [N or 1, 1, H, W] in [0, 1], 1 where there is one."""

    pixels: F32
    mask: F32


def picture_shape(manifest: Manifest) -> tuple[int, int, int]:
    """[C, H, W] of the images that `inpaint` takes; ArgumentError for a bundle that takes none."""
    if not inpaints(manifest):
        needed = "an image and a mask among its inputs, a state that is the image, or an encoder to it"
        raise abilities.lacks(manifest, "inpaint", needed)
    pair = image_and_mask(manifest)
    return abilities.picture_shape(manifest) if pair is None else pair[0].picture_shape


def inpaints(manifest: Manifest) -> bool:
    """Whether a network takes image and mask, or images can become the state that is blended."""
    return image_and_mask(manifest) is not None or abilities.takes_images(manifest)


def inpaint(
    pipeline: Pipeline, images: Any, masks: Any, known_noise: Any, options: Mapping[str, Any], *, composite: bool
) -> tuple[Request, Holed]:
    """The request, and what its images are to be composited from."""
    manifest, state = pipeline.manifest, pipeline.spec.state.shape
    options = resolve.taken(pipeline, options, OPTIONS, "inpaint")
    shape = picture_shape(manifest)
    if composite and shape != manifest.pipeline.image_shape:
        made = manifest.pipeline.image_shape
        raise ArgumentError(
            f"inpaint takes images of {list(shape)} on this bundle and makes some of {list(made)}; expected equal sizes for "
            "what is known to be put back. Pass composite=False."
        )
    pixels = checks.images_of(images, shape)
    spec = InputSpec("masks", "float32", (BATCH, 1, *shape[1:]), (0.0, 1.0), draw=None, picture="mask", null=None)
    mask = checks.input_of(spec, masks)
    checks.agree_on_count({"images": len(pixels), "masks": len(mask)}, shared=("masks",))
    pair = image_and_mask(manifest)
    if pair is not None:
        return _conditioned(pipeline, Holed(pixels, mask), pair, known_noise, options), Holed(pixels, mask)
    noise = None if known_noise is None else checks.step_noise_of(known_noise, state, "known_noise")
    if noise is not None:
        checks.agree_on_count({"images": len(pixels), "known_noise": noise.shape[1]}, shared=("known_noise",))
    needed = [spec.name for spec in pipeline.needed(()) if options.get(spec.name) is None]
    values = pipeline.encode(pixels) if pipeline.spec.encode and (needed or pipeline.spec.encodes_state) else {}
    encoded = {name: value for name, value in values.items() if name in needed}
    known = abilities.start_state(pipeline, pixels, values)
    start = known if pipeline.spec.state.start is None else None
    request = resolve_request(pipeline, {**options, **encoded}, "inpaint", n=len(pixels), start=start)
    blend = Blend(known, 1 - nearest(mask, state[1:]), *levels(pipeline, request), noise)
    return request.blended(blend), Holed(pixels, mask)


def image_and_mask(manifest: Manifest) -> tuple[InputSpec, InputSpec] | None:
    """The inputs that are a picture and its mask, where there is one of each."""
    images, masks = abilities.picture_inputs(manifest)
    return (images[0], masks[0]) if len(images) == len(masks) == 1 else None


def _conditioned(
    pipeline: Pipeline, holed: Holed, pair: tuple[InputSpec, InputSpec], known_noise: Any, options: Mapping[str, Any]
) -> Request:
    """A sample of a network that takes image and mask."""
    image, mask = pair
    given = [name for name in (image.name, mask.name) if options.get(name) is not None]
    if given or known_noise is not None:
        found = ", ".join([*given, *(["known_noise"] if known_noise is not None else [])])
        raise ArgumentError(
            f"inpaint hands images and masks to this bundle's network as {image.name} and {mask.name}; expected no {found} "
            "beside them. Leave them out."
        )
    inputs = {image.name: 2 * holed.pixels - 1, mask.name: holed.mask}
    return resolve_request(pipeline, {**options, **inputs}, "inpaint", n=len(holed.pixels))


def nearest(mask: F32, size: tuple[int, ...]) -> F32:
    """A mask [N, 1, H, W] at another size, by its nearest value above and to the left, as torch's `interpolate`."""
    rows, columns = (np.arange(to) * have // to for to, have in zip(size, mask.shape[2:], strict=True))
    found: F32 = np.ascontiguousarray(mask[:, :, rows[:, None], columns])
    return found


def levels(pipeline: Pipeline, request: Request) -> tuple[F32, F32]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of x before each row, float32 [rows]."""
    alpha_bar = pipeline.schedule.alpha_bar[request.table.timesteps]
    return np.sqrt(alpha_bar).astype(np.float32), np.sqrt(1.0 - alpha_bar).astype(np.float32)


def composited(images: U8, holed: Holed) -> U8:
    """The images inside the mask, and what was known outside of it: uint8 [N, H, W, C]."""
    mask = holed.mask.transpose(0, 2, 3, 1).astype(np.float64)
    known = holed.pixels.transpose(0, 2, 3, 1).astype(np.float64)
    return np.rint(mask * images + (1.0 - mask) * 255.0 * known).astype(np.uint8)
