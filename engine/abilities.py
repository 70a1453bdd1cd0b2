"""The abilities that verbs ask of a bundle: a drawn input, an encoder, a state that is an image; ArgumentError without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import checks
from engine.argument_checks import is_integer
from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import X
from engine.errors import ArgumentError
from engine.pipeline import Arrays, Pipeline
from engine.result import F32
from engine.solver import noise as noises


def lacks(manifest: Manifest, what: str, needed: str) -> ArgumentError:
    """The refusal of the verb `what`, which needs something that the bundle does not have."""
    takes = ", ".join(str(spec) for spec in manifest.inputs) or "no inputs"
    return ArgumentError(
        f"{what} needs {needed}, which this bundle lacks: it takes {takes}, and holds the graphs "
        f"{', '.join(manifest.graphs)}. Build a bundle from a checkpoint that has it."
    )


def drawn_input(manifest: Manifest, what: str) -> InputSpec:
    """The input that is drawn."""
    if manifest.drawn is None:
        raise lacks(manifest, what, "an input that is drawn")
    return manifest.drawn


def need_encoder(manifest: Manifest, what: str) -> None:
    """Refuse a bundle whose pipeline encodes nothing."""
    if not manifest.pipeline.encode:
        raise lacks(manifest, what, "an encoder (`pipeline.encode`)")


def takes_images(manifest: Manifest) -> bool:
    """Whether images can become the state: it is the image, or `encode` makes it of one."""
    return manifest.pipeline.image == X or manifest.pipeline.encodes_state


def forgets(manifest: Manifest, t_start: int | None) -> bool:
    """Whether a chain that is to start from an image would know nothing of it: there is no start value, and no t_start."""
    return manifest.pipeline.state.start is None and t_start is None


def autoencodes(manifest: Manifest) -> bool:
    """Whether `encode` makes the state of an image and nothing else that a chain takes: what `after` makes of it is then the
    image again, and a chain between the two would know no image."""
    made = {value for call in manifest.pipeline.encode for value in call.outputs.values()}
    return X in made and not made & {spec.name for spec in manifest.inputs}


def need_pixel_state(manifest: Manifest, what: str) -> None:
    """Refuse a bundle whose state is no image."""
    if manifest.pipeline.image != X:
        shape = list(manifest.pipeline.state.shape)
        raise lacks(manifest, what, f"a state that is the image: it decodes one of {shape}")


def start_pixels(manifest: Manifest, images: npt.ArrayLike, what: str) -> F32:
    """Images that the chain can start from, [N, C, H, W] in [0, 1]."""
    if not takes_images(manifest):
        shape = list(manifest.pipeline.state.shape)
        raise lacks(manifest, what, f"a state that is the image, or an encoder to it: it decodes one of {shape}")
    return checks.images_of(images, picture_shape(manifest))


def start_state(pipeline: Pipeline, pixels: F32, encoded: Arrays) -> F32:
    """The clean state of images, [N, *state]; encoded: what `encode` made of them."""
    return encoded[X] if pipeline.spec.encodes_state else 2 * pixels - 1


def picture_shape(manifest: Manifest) -> tuple[int, int, int]:
    """[C, H, W] of the images that verbs take: the encoder's, but where the state itself is the image."""
    spec = manifest.pipeline
    return spec.image_shape if spec.image == X and not spec.encodes_state else encoder_shape(manifest)


def picture_inputs(manifest: Manifest) -> tuple[tuple[InputSpec, ...], tuple[InputSpec, ...]]:
    """The inputs that are images, and those that are masks."""
    images, masks = (tuple(spec for spec in manifest.inputs if spec.picture == kind) for kind in ("image", "mask"))
    return images, masks


def upscales(manifest: Manifest) -> bool:
    """Whether one picture is what a sample is made of."""
    images, masks = picture_inputs(manifest)
    return len(images) == 1 and not masks


def upscaled_input(manifest: Manifest, what: str) -> InputSpec:
    """The one picture that a sample is made of."""
    if not upscales(manifest):
        raise lacks(manifest, what, "exactly one input that is an image, and none that is a mask")
    return picture_inputs(manifest)[0][0]


def encoder_shape(manifest: Manifest) -> tuple[int, int, int]:
    """[C, H, W] of the images that `encode` takes; without one, of those that the pipeline makes."""
    image = manifest.pipeline.encoder_image
    if image is None:
        return manifest.pipeline.image_shape
    channels, height, width = image.sample
    return int(channels), int(height), int(width)


def declared(manifest: Manifest, values: Arrays) -> Arrays:
    """Those values that are inputs."""
    names = [spec.name for spec in manifest.inputs]
    return {name: value for name, value in values.items() if name in names}


def refuse_given(options: Mapping[str, Any], encoded: Arrays, what: str) -> None:
    """Refuse inputs beside the images that they are encoded from."""
    for name in encoded:
        if options.get(name) is not None:
            raise ArgumentError(f"{what} encodes {name} from the images; expected none beside them. Leave {name} out.")


def end_of(pipeline: Pipeline, end: Any, name: str, drawn: InputSpec | None, prior: str | None) -> F32:
    """One end of an interpolation as one sample of the drawn input, or of x_T without one: of a seed, or as given."""
    shape = pipeline.spec.state.shape
    if is_integer(end) or isinstance(end, (bool, np.bool_)):
        seeds = noises.resolve_seeds(end, 1)  # refuses a bool
        if drawn is not None:
            return pipeline.draw(seeds, prior)[drawn.name][0]
        canvas = pipeline.bundle.canvas
        return noises.initial(seeds, shape, block=None if canvas is None else canvas.block)[0]
    found = checks.start_noise_of(end, shape, name) if drawn is None else checks.input_of(replace(drawn, name=name), end)
    if len(found) != 1:
        moved = "x_T" if drawn is None else drawn.name
        raise ArgumentError(f"{name} holds {len(found)} samples of {moved}; expected one, or an int seed.")
    return found[0]
