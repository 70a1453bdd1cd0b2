"""The UNet that keys and shapes describe: everything but its heads, the order inside its attention, and the image size.

The expanding path tells the levels: behind the last block of each but the first stands what doubles the map, a convolution
(`.conv`) or a residual block (`.in_layers`). On the contracting path a residual block that halves looks like any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from engine.bundle.tensors import IMAGE_CHANNELS
from engine.errors import CheckpointError
from export.models.openai.spec import OpenAIUNetSpec
from export.models.unet import NORM_GROUPS
from export.read.parts import size_of
from export.read.wrappers import BUFFERS, own_key

Tensors = Mapping[str, torch.Tensor]
STEM, TIME, FIRST = "input_blocks.0.0.weight", "time_embed.0.weight", "input_blocks.1.0."
POOLS, LINEAR = (".out.2.c_proj.weight", ".out.3.weight"), ".out.0.weight"  # of classifiers: attention, adaptive; spatial
MAX_LEVELS = 8
_size = partial(size_of, kind="a UNet", source="improved- or guided-diffusion")
LABEL_MAP = "middle_block.0.in_norm.mlp_shared.0.weight"  # of models whose norms a label map scales and shifts


def own_keys(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The tensors by the UNet's own keys where a file's are such, by the file's where they are not."""
    return {own_key(key) or key: tensor for key, tensor in tensors.items()}


def claims(tensors: Tensors) -> bool:
    """Whether this is a UNet of this family alone, or a classifier of it.

    A plain UNet without labels, learned variance, scale and shift, and blocks that resample may be DiffuseVAE's as well,
    and is left to that; so is one under its wrapper's names, beside its constants, or with its projection of z.
    """
    keys = own_keys(tensors)
    if STEM not in keys or TIME not in keys or not BUFFERS.isdisjoint(keys):
        return False
    if any(key.startswith(("proj.", "vae.", "decoder.")) or ".transformer_blocks." in key for key in keys):
        return False
    if is_classifier(tensors) or "label_emb.weight" in keys or any(_doubles_by_block(key) for key in keys):
        return True
    last, emb, out = (_rows(keys, k) for k in ("out.2.weight", f"{FIRST}emb_layers.1.weight", f"{FIRST}out_layers.3.weight"))
    learned = last not in IMAGE_CHANNELS and last // 2 in IMAGE_CHANNELS and not last % 2
    return learned or (out > 0 and emb == 2 * out)


def is_classifier(tensors: Tensors) -> bool:
    """Whether the contracting half alone is there, and a pool behind it; by a file's keys, as a pool's are no UNet's."""
    if any("output_blocks." in key for key in tensors):
        return False
    return any(f".{key}".endswith(POOLS) or (f".{key}".endswith(LINEAR) and t.ndim == 2) for key, t in tensors.items())


def read_shape(tensors: Tensors, path: Path) -> OpenAIUNetSpec:
    """What the weights tell of a UNet, without heads; CheckpointError for what is none, or not one that is supported."""
    base = _size(tensors, TIME, 1, path)
    blocks, levels, by_block = _levels(tensors, path)
    firsts = [f"input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
    widths = [_size(tensors, f"{name}.0.out_layers.3.weight", 0, path) for name in firsts]
    outputs, inputs = _size(tensors, "out.2.weight", 0, path), _size(tensors, STEM, 1, path)
    learned = outputs not in IMAGE_CHANNELS
    channels = outputs // 2 if learned else outputs
    if channels not in IMAGE_CHANNELS or (learned and outputs % 2) or inputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"{path}: found a network from {inputs} to {outputs} channels, expected one for images of 1, 3 or 4: as many "
            "out, or twice as many with a learned variance, and as many in, or twice as many for an upsampler; this variant "
            "is not supported"
        )
    stem = _size(tensors, STEM, 0, path)
    if any(width % NORM_GROUPS or not width for width in (base, stem, *widths)):
        raise CheckpointError(
            f"{path}: found {base} base channels and levels of {', '.join(map(str, widths))}, expected multiples of "
            f"{NORM_GROUPS} (group normalisation); the file is not a checkpoint of this kind"
        )
    return OpenAIUNetSpec(
        in_channels=inputs,
        out_channels=outputs,
        model_channels=base,
        channel_mult=tuple(_mult(width, base) for width in widths),
        num_res_blocks=blocks,
        attention_factors=tuple(1 << level for level, name in enumerate(firsts) if f"{name}.1.qkv.weight" in tensors),
        num_heads=None,
        num_head_channels=None,
        scale_shift=_size(tensors, f"{FIRST}emb_layers.1.weight", 0, path) == 2 * widths[0],
        resample_blocks=by_block,
        stem_channels=None if stem == base else stem,
        classes=_size(tensors, "label_emb.weight", 0, path) if "label_emb.weight" in tensors else None,
        learned_variance=learned,
        map_channels=_size(tensors, LABEL_MAP, 1, path) if LABEL_MAP in tensors else None,
    )


def _levels(tensors: Tensors, path: Path) -> tuple[int, int, bool]:
    """Residual blocks of a level, levels, and whether residual blocks resample."""
    found = [int(match[1]) for key in tensors if (match := re.match(r"output_blocks\.(\d{1,4})\.", key))]
    count = max(found, default=-1) + 1
    ups = sorted({int(key.split(".")[1]) for key in tensors if _doubles_by_block(key) or _doubles_by_conv(key)})
    each = ups[0] + 1 if ups else count
    if not count or each < 2 or count % each or ups != list(range(each - 1, count - 1, each)) or count > each * MAX_LEVELS:
        raise CheckpointError(
            f"{path}: found {count} output_blocks, of which {ups or 'none'} double the map, expected as many of them on "
            f"each of 1 to {MAX_LEVELS} levels; the file is incomplete or not a checkpoint of improved- or guided-diffusion"
        )
    return each - 1, count // each, any(_doubles_by_block(key) for key in tensors)


def _doubles_by_block(key: str) -> bool:
    return re.match(r"output_blocks\.\d{1,4}\.[12]\.(?:in|emb|out)_layers\.", key) is not None


def _doubles_by_conv(key: str) -> bool:
    return re.match(r"output_blocks\.\d{1,4}\.[12]\.conv\.", key) is not None


def _mult(width: int, base: int) -> float:
    """The multiple of the base width that is rounded down to a width."""
    if width % base == 0:
        return width // base
    mult = width / base
    return mult if int(mult * base) == width else math.nextafter(mult, math.inf)


def _rows(tensors: Tensors, key: str) -> int:
    tensor = tensors.get(key)
    return tensor.shape[0] if tensor is not None and tensor.ndim else 0
