"""The generator that keys and shapes describe. Its layers are numbered in the order in which they run.

On the way down a level ends with a block that halves, behind which stands the image's own convolution; behind the last level
come a block, attention and a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from engine.bundle.tensors import IMAGE_CHANNELS
from engine.errors import CheckpointError
from export.models.ncsnpp import GeneratorSpec
from export.read.parts import size_of

Tensors = Mapping[str, torch.Tensor]
STYLE, LATENT = "all_modules.3.GroupNorm_0.style.weight", "z_transform.1.weight"
BLOCK, ATTENTION, PYRAMID = "block", "attention", "pyramid"
MARKS = {"GroupNorm_0.style.weight": BLOCK, "NIN_0.W": ATTENTION, "Conv2d_0.weight": PYRAMID}
MAX_LAYERS = 64
_size = partial(size_of, kind="a generator", source="denoising-diffusion-gan")


def claims(tensors: Tensors) -> bool:
    """Whether these are a generator's keys, whatever wraps them."""
    return all(any(key == mark or key.endswith(f".{mark}") for key in tensors) for mark in (STYLE, LATENT))


def read_spec(tensors: Tensors, path: Path) -> GeneratorSpec:
    """The generator; CheckpointError for what is none, or not one that is supported."""
    kinds = _kinds(tensors)
    halvings = [index for index, kind in kinds.items() if kind == PYRAMID]
    first = [index for index, kind in kinds.items() if kind == BLOCK and index < min(halvings, default=0)]
    if len(first) < 2:
        raise CheckpointError(
            f"{path}: found a generator without Conv2d_0.weight behind the first of its levels, expected several levels and "
            "the image's own filtered convolution beside each (progressive_input residual, fir); this one is not supported"
        )
    blocks = len(first) - 1
    starts = [3, *(index + 1 for index in halvings)]
    widths = tuple(_size(tensors, f"all_modules.{start}.Conv_0.weight", 0, path) for start in starts)
    base, channels = (_size(tensors, "all_modules.2.weight", axis, path) for axis in (0, 1))
    if channels not in IMAGE_CHANNELS or base % 4 or any(width % 4 for width in widths):
        raise CheckpointError(
            f"{path}: found {channels} channels and levels of {', '.join(map(str, widths))}, expected images of 1, 3 or 4 "
            "channels and widths that are multiples of 4; the file is not a checkpoint of this kind"
        )
    layers = sum(re.fullmatch(r"z_transform\.\d{1,3}\.weight", key) is not None for key in tensors) - 1
    if layers > MAX_LAYERS:
        raise CheckpointError(f"{path}: found {layers} layers of z_transform, expected at most {MAX_LAYERS}")
    return GeneratorSpec(
        channels=channels,
        base=base,
        widths=widths,
        blocks=blocks,
        attends=tuple(kinds.get(start + 1) == ATTENTION for start in starts),
        latent=_size(tensors, LATENT, 1, path),
        embedding=_size(tensors, LATENT, 0, path),
        layers=layers,
    )


def _kinds(tensors: Tensors) -> dict[int, str]:
    """{number of a layer: what it is} of those that have a mark, in their order."""
    found = {}
    for key in tensors:
        match = re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", key)
        if match and match[2] in MARKS:
            found[int(match[1])] = MARKS[match[2]]
    return dict(sorted(found.items()))
