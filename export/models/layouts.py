"""The names that the two published UNet layouts have for our one module's weights.

`entries(spec)` pairs every tensor of `UNet(spec)` with the checkpoint key or keys that it is read from; everything else
(reading, writing, the list of expected keys and shapes) follows from these pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from export.models.unet import Downsample, Stage, UNet, UNetSpec


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, the key or keys it comes from, and how they are arranged.

    `form` is "same", "conv1d" (the same numbers without the last axis), "qkv_heads" (one tensor ordered head by head as
    [q k v]) or "qkv_parts" (three tensors).
    """

    ours: str
    keys: tuple[str, ...]
    form: str = "same"


def _pair(ours: str, theirs: str, form: str = "same") -> Iterator[Entry]:
    for leaf in ("weight", "bias"):
        # Biases have no spatial axes: only the qkv arrangements concern them.
        leaf_form = "same" if leaf == "bias" and form == "conv1d" else form
        yield Entry(f"{ours}.{leaf}", (f"{theirs}.{leaf}",), leaf_form)


_OPENAI_RES = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "emb": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "skip": "skip_connection",
}  # fmt: skip
_DDIM_RES = {
    "norm1": "norm1", "conv1": "conv1", "emb": "temb_proj", "norm2": "norm2", "conv2": "conv2", "skip": "nin_shortcut",
}  # fmt: skip


def _res(ours: str, theirs: str, names: Mapping[str, str], has_skip: bool) -> Iterator[Entry]:
    for part, name in names.items():
        if part != "skip" or has_skip:
            yield from _pair(f"{ours}.{part}", f"{theirs}.{name}")


def _openai_attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _pair(f"{ours}.norm", f"{theirs}.norm")
    yield from _pair(f"{ours}.qkv", f"{theirs}.qkv", "qkv_heads")
    yield from _pair(f"{ours}.proj", f"{theirs}.proj_out", "conv1d")


def _ddim_attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _pair(f"{ours}.norm", f"{theirs}.norm")
    for leaf in ("weight", "bias"):
        yield Entry(f"{ours}.qkv.{leaf}", tuple(f"{theirs}.{part}.{leaf}" for part in "qkv"), "qkv_parts")
    yield from _pair(f"{ours}.proj", f"{theirs}.proj_out")


def _openai(net: UNet) -> Iterator[Entry]:
    for index in (0, 2):
        yield from _pair(f"time_mlp.{index}", f"time_embed.{index}")
        if net.z_mlp is not None:
            yield from _pair(f"z_mlp.{index}", f"proj.{index}")
    yield from _pair("stem", "input_blocks.0.0")
    for index, module in enumerate(net.encoder):
        theirs = f"input_blocks.{index + 1}"
        if isinstance(module, Downsample):
            yield from _pair(f"encoder.{index}.conv", f"{theirs}.0.op")
        elif isinstance(module, Stage):
            yield from _openai_stage(f"encoder.{index}", theirs, module)
    yield from _res("middle.0.res", "middle_block.0", _OPENAI_RES, has_skip=False)
    yield from _openai_attention("middle.0.attn", "middle_block.1")
    yield from _res("middle.1.res", "middle_block.2", _OPENAI_RES, has_skip=False)
    for index, stage in enumerate(net.decoder_stages()):
        yield from _openai_stage(f"decoder.{index}", f"output_blocks.{index}", stage)
    yield from _pair("out_norm", "out.0")
    yield from _pair("out_conv", "out.2")


def _openai_stage(ours: str, theirs: str, stage: Stage) -> Iterator[Entry]:
    yield from _res(f"{ours}.res", f"{theirs}.0", _OPENAI_RES, not isinstance(stage.res.skip, torch.nn.Identity))
    position = 1
    if stage.attn is not None:
        yield from _openai_attention(f"{ours}.attn", f"{theirs}.{position}")
        position += 1
    if stage.up is not None:
        yield from _pair(f"{ours}.up.conv", f"{theirs}.{position}.conv")


def _ddim(net: UNet) -> Iterator[Entry]:
    spec = net.spec
    for ours, theirs in ((0, 0), (2, 1)):
        yield from _pair(f"time_mlp.{ours}", f"temb.dense.{theirs}")
    yield from _pair("stem", "conv_in")
    per_level = spec.blocks_per_level + 1
    for index, module in enumerate(net.encoder):
        level, block = divmod(index, per_level)
        if isinstance(module, Downsample):
            yield from _pair(f"encoder.{index}.conv", f"down.{level}.downsample.conv")
        elif isinstance(module, Stage):
            yield from _ddim_stage(f"encoder.{index}", f"down.{level}", block, module)
    yield from _res("middle.0.res", "mid.block_1", _DDIM_RES, has_skip=False)
    yield from _ddim_attention("middle.0.attn", "mid.attn_1")
    yield from _res("middle.1.res", "mid.block_2", _DDIM_RES, has_skip=False)
    for index, stage in enumerate(net.decoder_stages()):
        step, block = divmod(index, per_level)
        level = len(spec.channel_mult) - 1 - step
        yield from _ddim_stage(f"decoder.{index}", f"up.{level}", block, stage)
        if stage.up is not None:
            yield from _pair(f"decoder.{index}.up.conv", f"up.{level}.upsample.conv")
    yield from _pair("out_norm", "norm_out")
    yield from _pair("out_conv", "conv_out")


def _ddim_stage(ours: str, theirs: str, block: int, stage: Stage) -> Iterator[Entry]:
    has_skip = not isinstance(stage.res.skip, torch.nn.Identity)
    yield from _res(f"{ours}.res", f"{theirs}.block.{block}", _DDIM_RES, has_skip)
    if stage.attn is not None:
        yield from _ddim_attention(f"{ours}.attn", f"{theirs}.attn.{block}")


def entries(net: UNet) -> list[Entry]:
    """Pair every tensor of `net` with the keys of its layout, in the order of the checkpoint."""
    return list(_openai(net) if net.spec.layout == "openai" else _ddim(net))


def _heads_first(tensor: torch.Tensor, spec: UNetSpec) -> torch.Tensor:
    """[heads, (q k v), d, …] -> [(q k v), heads, d, …], flattened on the first axis."""
    return tensor.reshape(spec.heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _parts_first(tensor: torch.Tensor, spec: UNetSpec) -> torch.Tensor:
    """The inverse of `_heads_first`."""
    return tensor.reshape(3, spec.heads, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def expected_shapes(net: UNet) -> dict[str, tuple[int, ...]]:
    """Every checkpoint key of `net`'s layout (without a prefix) and the shape it must have."""
    ours = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in entries(net):
        shape = ours[entry.ours]
        if entry.form in ("conv1d", "qkv_heads"):
            shape = shape[:3]
        for key in entry.keys:
            shapes[key] = (shape[0] // len(entry.keys), *shape[1:])
    return shapes


def from_checkpoint(net: UNet, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Arrange checkpoint tensors (keys and shapes as in `expected_shapes`) into `net`'s own state dict."""
    target = net.state_dict()
    result = {}
    for entry in entries(net):
        tensor = torch.cat([state[key] for key in entry.keys])
        if entry.form == "qkv_heads":
            tensor = _heads_first(tensor, net.spec)
        result[entry.ours] = tensor.reshape(target[entry.ours].shape).to(torch.float32)
    return result


def to_checkpoint(net: UNet, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Arrange `net`'s own state dict into checkpoint tensors: the inverse of `from_checkpoint`."""
    shapes = expected_shapes(net)
    result: dict[str, torch.Tensor] = {}
    for entry in entries(net):
        tensor = state[entry.ours]
        if entry.form == "qkv_heads":
            tensor = _parts_first(tensor, net.spec)
        for key, part in zip(entry.keys, tensor.chunk(len(entry.keys)), strict=True):
            result[key] = part.reshape(shapes[key]).contiguous()
    return result
