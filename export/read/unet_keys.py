"""The UNet that keys and shapes describe: everything but the number of heads and the image size is in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from engine.bundle.tensors import IMAGE_CHANNELS
from engine.errors import CheckpointError
from export.models.unet import NORM_GROUPS
from export.read.parts import Network, Tensors
from export.read.vae_strings import majority

RES_WIDTHS = {
    "openai": ("out_layers.3.weight", "out_layers.3.bias", "out_layers.0.weight", "in_layers.2.weight"),
    "ddim": ("conv2.weight", "conv2.bias", "norm2.weight", "conv1.weight"),
}


@dataclass(frozen=True)
class Shape:
    """A UNet's architecture as far as the weights tell it; fields as in `UNetSpec`."""

    layout: str
    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[int, ...]
    attention_channels: tuple[int, ...]
    z_dim: int | None
    scale_shift: bool


@dataclass
class Level:
    """The residual blocks of one resolution of the contracting path."""

    widths: list[int]
    attention: bool = False


def infer_unet(network: Network) -> Shape:
    """Read the architecture off the keys; CheckpointError when they describe no UNet of the two known layouts."""
    _refuse_variants(network)
    layout = "ddim" if any(key.startswith(("conv_in.", "temb.")) for key in network.unet) else "openai"
    stem, time, out = (
        ("input_blocks.0.0", "time_embed.0", "out.2") if layout == "openai" else ("conv_in", "temb.dense.0", "conv_out")
    )
    base = _need(network, stem, [(f"{stem}.weight", 0), (f"{stem}.bias", 0), (f"{time}.weight", 1)])
    levels = list(_openai_levels(network) if layout == "openai" else _ddim_levels(network))
    mults = tuple(_mult(network, level, base, number) for number, level in enumerate(levels))
    attention = tuple(number for number, level in enumerate(levels) if level.attention)
    out_channels = _need(network, out, [(f"{out}.weight", 0), (f"{out}.bias", 0)])
    in_channels = _need(network, stem, [(f"{stem}.weight", 1)])
    _check_channels(network, in_channels, out_channels, base)
    return Shape(
        layout=layout,
        in_channels=in_channels,
        out_channels=out_channels,
        model_channels=base,
        channel_mult=mults,
        blocks_per_level=_blocks_per_level(network, levels),
        attention_levels=attention,
        # The middle block always has attention, at the deepest level's width.
        attention_channels=tuple(sorted({mults[number] * base for number in (*attention, len(mults) - 1)})),
        z_dim=_need(network, "proj.0", [("proj.0.weight", 1)]) if _any(network.unet, "proj.") else None,
        scale_shift=_scale_shift(network, mults[0] * base),
    )


def _any(tensors: Tensors, *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in tensors)


def _need(network: Network, name: str, sources: list[tuple[str, int]]) -> int:
    size = majority(network.unet, sources)
    if size is None:
        raise CheckpointError(
            f"{network.path}: missing {network.prefix}{name}.*, expected a UNet's weights there; the file is incomplete or "
            "not a DiffuseVAE diffusion checkpoint"
        )
    return size


def _refuse_variants(network: Network) -> None:
    """Name the relatives of the two layouts that this project does not run."""
    keys = network.unet
    variants = (
        (_any(keys, "label_emb."), "label_emb.*", "a class-conditional UNet"),
        (any(".conv_shortcut." in key for key in keys), "conv_shortcut.*", "a UNet with 3x3 shortcuts"),
        (_any(keys, "temb.") and _any(keys, "proj."), "proj.*", "a DDIM-layout UNet conditioned on z"),
        (any(".transformer_blocks." in key for key in keys), "transformer_blocks", "a latent-diffusion UNet"),
    )
    for present, key, what in variants:
        if present:
            raise CheckpointError(
                f"{network.path}: found {network.prefix}{key} ({what}), expected a DiffuseVAE UNet as the reference "
                "trains it; "
                "this variant is not supported"
            )


def _check_channels(network: Network, in_channels: int, out_channels: int, base: int) -> None:
    if out_channels not in IMAGE_CHANNELS:
        learned = out_channels % 2 == 0 and out_channels // 2 in IMAGE_CHANNELS
        what = "a network that also learns the variance" if learned else "a network of another image type"
        raise CheckpointError(
            f"{network.path}: found {out_channels} output channels ({what}), expected 1, 3 or 4 (the noise of a gray, RGB "
            "or RGBA image); this variant is not supported"
        )
    if in_channels not in (out_channels, 2 * out_channels):
        raise CheckpointError(
            f"{network.path}: found {in_channels} input channels, expected {out_channels} (unconditional) or "
            f"{2 * out_channels} (the VAE's reconstruction beside x); this variant is not supported"
        )
    if base % NORM_GROUPS:
        raise CheckpointError(
            f"{network.path}: found {base} base channels, expected a multiple of {NORM_GROUPS} (group normalisation); "
            "the file "
            "is not a checkpoint of the reference's UNets"
        )


def _indices(tensors: Tensors, pattern: str) -> range:
    """0 … the largest number that `pattern` captures in any key."""
    found = [int(match[1]) for key in tensors if (match := re.match(pattern, key))]
    return range(max(found) + 1) if found else range(0)


def _openai_levels(network: Network) -> Iterator[Level]:
    keys = network.unet
    level = Level([])
    for index in _indices(keys, r"input_blocks\.(\d{1,4})\."):
        name = f"input_blocks.{index}"
        if index == 0:
            continue
        if _any(keys, f"{name}.0.op."):
            yield level
            level = Level([])
            continue
        level.widths.append(_block_width(network, f"{name}.0", "openai"))
        level.attention |= _any(keys, f"{name}.1.")
    yield level


def _ddim_levels(network: Network) -> Iterator[Level]:
    keys = network.unet
    for number in _indices(keys, r"down\.(\d{1,4})\."):
        blocks = _indices(keys, rf"down\.{number}\.block\.(\d{{1,4}})\.")
        widths = [_block_width(network, f"down.{number}.block.{block}", "ddim") for block in blocks]
        yield Level(widths, _any(keys, f"down.{number}.attn."))


def _block_width(network: Network, name: str, layout: str) -> int:
    return _need(network, name, [(f"{name}.{leaf}", 0) for leaf in RES_WIDTHS[layout]])


def _mult(network: Network, level: Level, base: int, number: int) -> int:
    if not level.widths:
        raise CheckpointError(
            f"{network.path}: missing the residual blocks of level {number} under {network.prefix}, expected at least "
            "one; the "
            "file is incomplete"
        )
    width = Counter(level.widths).most_common(1)[0][0]
    if not width or width % base:
        raise CheckpointError(
            f"{network.path}: found {width} channels at level {number}, expected a multiple of the base width {base} "
            f"({network.prefix}); the file is not a checkpoint of the reference's UNets"
        )
    return width // base


def _blocks_per_level(network: Network, levels: list[Level]) -> int:
    counts = [len(level.widths) for level in levels]
    if len(set(counts)) > 1:
        raise CheckpointError(
            f"{network.path}: found {counts} residual blocks on the levels under {network.prefix}, expected the same "
            "number on "
            "each; keys are missing, or this is not a checkpoint of the reference's UNets"
        )
    return counts[0]


def _scale_shift(network: Network, width: int) -> bool:
    """Whether the first block's embedding is twice as wide as the block: a scale beside the shift."""
    name = "input_blocks.1.0.emb_layers.1"
    return majority(network.unet, [(f"{name}.weight", 0), (f"{name}.bias", 0)]) == 2 * width
