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


def start_pixels(manifest: Manifest, images: npt.ArrayLike, what: str) -> F32:
    """Images that the chain can start from."""
    spec = manifest.pipeline
    if spec.image != "x":
        raise lacks(manifest, what, f"a state that is the image: it decodes one of {list(spec.state.shape)}")
    return checks.images_of(images, spec.state.shape)


def encoder_shape(pipeline: Pipeline) -> tuple[int, int, int]:
    """[C, H, W] of the images that `encode` takes."""
    channels, height, width = pipeline.encoder_image.sample
    return int(channels), int(height), int(width)


def encoded_inputs(pipeline: Pipeline, pixels: F32) -> Arrays:
    """Those values of `encode` that are inputs."""
    declared = [spec.name for spec in pipeline.manifest.inputs]
    return {name: value for name, value in pipeline.encode(pixels).items() if name in declared}


def refuse_given(options: Mapping[str, Any], encoded: Arrays, what: str) -> None:
    """Refuse inputs beside the images that they are encoded from."""
    for name in encoded:
        if options.get(name) is not None:
            raise ArgumentError(f"{what} encodes {name} from the images; expected none beside them. Leave {name} out.")


def end_of(pipeline: Pipeline, end: Any, name: str, drawn: InputSpec, prior: str | None) -> F32:
    """One end of an interpolation as one sample of the drawn input: of a seed, or as given."""
    if is_integer(end) or isinstance(end, (bool, np.bool_)):
        seeds = noises.resolve_seeds(end, 1)  # refuses a bool
        return pipeline.draw(seeds, prior)[drawn.name][0]
    found = checks.input_of(replace(drawn, name=name), end)
    if len(found) != 1:
        raise ArgumentError(f"{name} holds {len(found)} samples of {drawn.name}; expected one, or an int seed.")
    return found[0]
