"""The architecture strings of a VAE's checkpoint.

Pooling and upsampling layers have no weights. What tells them is the reference's convention, which all its published
models keep: a 1x1 transition follows every change of resolution, the change next to the latent is by 4 (1 <-> 4), every
other by 2, and convolutions at resolution 1 are 1x1. Checkpoints that keep their strings need no convention.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

from engine.errors import ArgumentError, CheckpointError
from export.models.vae import VAE, Block, VAESpec, parse_blocks, parse_channels
from export.read.parts import Stage, Tensors, require

STRINGS = ("enc_block_str", "dec_block_str", "enc_channel_str", "dec_channel_str")
ASK = "name the blocks with --vae-enc-blocks and --vae-dec-blocks (strings such as 32x2,32d2,32t16,…)"


def infer_vae(stage: Stage, enc_blocks: str | None, dec_blocks: str | None) -> tuple[VAESpec, str]:
    """The VAE's spec and where it came from: the flags, the file's own strings, or the convention."""
    if enc_blocks or dec_blocks:
        if not (enc_blocks and dec_blocks):
            raise ArgumentError(
                "--vae-enc-blocks and --vae-dec-blocks: found one of the two, expected both; name the other as well"
            )
        spec, origin = _from_blocks(stage, enc_blocks, dec_blocks), "flag"
    elif all(isinstance(stage.checkpoint.metadata.get(key), str) for key in STRINGS):
        spec, origin = _from_metadata(stage), "metadata"
    else:
        enc = _conventional(stage, "enc")
        dec = _conventional(stage, "dec")
        spec, origin = _from_blocks(stage, enc, dec), "weights"
    _check_resolutions(stage, spec)
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in VAE(spec).state_dict().items()}
    described = f"the VAE {spec.enc_blocks} | {spec.dec_blocks} (from {origin})"
    require(stage.tensors, shapes, stage.checkpoint.path, stage.prefix, described)
    return spec, origin


def _from_metadata(stage: Stage) -> VAESpec:
    enc, dec, enc_channels, dec_channels = (stage.checkpoint.metadata[key] for key in STRINGS)
    size = stage.checkpoint.metadata.get("input_res")
    for blocks, channels in ((enc, enc_channels), (dec, dec_channels)):
        known = set(_parsed(stage, channels, parse_channels))
        needed = {block.resolution for block in _parsed(stage, blocks, parse_blocks)} | {1}
        if not needed <= known:
            raise CheckpointError(
                f"{stage.checkpoint.path}: found VAE channels {channels!r} in the file's hyper-parameters without "
                "resolution "
                f"{min(needed - known)}, expected one entry for each resolution of {blocks!r}; {ASK}"
            )
    image_size = size if type(size) is int else parse_blocks(enc)[0].resolution
    return VAESpec(image_size, enc, dec, enc_channels, dec_channels, _image_channels(stage))


def _parsed(stage: Stage, text: str, parse: Callable[[str], Any]) -> Any:
    """Parse a string that an untrusted file may hold."""
    _check_size(text)
    try:
        return parse(text)
    except ArgumentError as error:
        raise CheckpointError(f"{stage.checkpoint.path}: in the file's hyper-parameters: {error}") from error


def _check_size(text: str) -> None:
    """Refuse strings that would unfold into more layers than any model has."""
    numbers = re.findall(r"\d+", text)
    repeats = re.findall(r"x(\d+)", text)
    if len(text) > 2000 or any(len(n) > 5 for n in numbers) or any(int(n) > 999 for n in repeats):
        raise CheckpointError(
            f"VAE string {text[:60]!r}: found numbers or a length that no VAE has, expected entries such as "
            f"32x2,32d2,32t16; {ASK}"
        )


def _from_blocks(stage: Stage, enc: str, dec: str) -> VAESpec:
    """Fill in the channels of known blocks from the weights."""
    _check_size(enc)
    _check_size(dec)
    channels = [_channels(stage, half, parse_blocks(text)) for half, text in (("enc", enc), ("dec", dec))]
    texts = [",".join(f"{r}:{found[r]}" for r in sorted(found, reverse=True)) for found in channels]
    return VAESpec(parse_blocks(enc)[0].resolution, enc, dec, texts[0], texts[1], _image_channels(stage))


def _image_channels(stage: Stage) -> int:
    sources = [("enc.in_conv.weight", 1), ("dec.last_conv.weight", 0), ("dec.last_conv.bias", 0)]
    return majority(stage.tensors, sources) or _missing(stage, "dec.last_conv.weight")


def _channels(stage: Stage, half: str, blocks: list[Block]) -> dict[int, int]:
    found: dict[int, int] = {}
    for index, block in enumerate(blocks):
        name = f"{half}.block_mod.{index}"
        if block.kind in ("res", "down"):
            found.setdefault(block.resolution, _width(stage, name))
        elif block.kind == "turn":
            found.setdefault(block.resolution, _axis(stage, f"{name}.weight", 1))
            found.setdefault(block.arg, _axis(stage, f"{name}.weight", 0))
    return found


def _conventional(stage: Stage, half: str) -> str:
    """One half's block string, by the convention."""
    kinds = _kinds(stage, half)
    turns = kinds.count("turn")
    if not turns:
        raise _exotic(stage, half, "no transition")
    ladder = [1] + [4 * 2**i for i in range(turns)]  # 1, 4, 8, 16, …
    resolutions = ladder[::-1] if half == "enc" else ladder
    tokens: list[str] = []
    level, run = 0, 0
    for index, kind in enumerate(kinds):
        here = resolutions[level]
        if kind == "res":
            _check_kernel(stage, f"{half}.block_mod.{index}", here)
            run += 1
        if kind == "up":
            if index + 1 == len(kinds) or kinds[index + 1] != "turn":
                missing = f"{stage.prefix}{half}.block_mod.{index + 1}.weight"
                raise _exotic(stage, half, f"layer {index} without weights and no transition {missing} behind it")
            tokens += _repeat(here, run)
            run = 0
        if kind == "turn":
            tokens += _change(stage, half, kinds, index, here, resolutions[level + 1], run)
            level, run = level + 1, 0
    return ",".join(tokens + _repeat(resolutions[level], run))


def _change(stage: Stage, half: str, kinds: list[str], index: int, here: int, there: int, run: int) -> list[str]:
    """The tokens of one change of resolution, the transition at `index` included."""
    if half == "enc":
        if not run:
            raise _exotic(stage, half, f"a transition at layer {index} with no block to pool before it")
        return [*_repeat(here, run - 1), f"{here}d{here // there}", f"{here}t{there}"]
    if kinds[index - 1] != "up":
        raise _exotic(stage, half, f"a transition at layer {index} with no upsampling before it")
    return [f"{here}u{there // here}", f"{here}t{there}"]


def _repeat(resolution: int, count: int) -> list[str]:
    return [f"{resolution}x{count}"] if count else []


def _kinds(stage: Stage, half: str) -> list[str]:
    """ "res", "turn" or "up" (no weights) for each layer of one half."""
    pattern = re.compile(rf"{half}\.block_mod\.(\d{{1,4}})\.(c[1-4]\.)?(?:weight|bias)")
    found: dict[int, str] = {}
    for key in stage.tensors:
        if match := pattern.fullmatch(key):
            found[int(match[1])] = "res" if match[2] else "turn"
    if not found:
        raise CheckpointError(
            f"{stage.checkpoint.path}: found no key of {stage.prefix}{half}.block_mod.*, expected a complete VAE; give one "
            "with --vae"
        )
    kinds = [found.get(index, "up") for index in range(max(found) + 1)]
    if half == "enc" and "up" in kinds:
        missing = f"{stage.prefix}enc.block_mod.{kinds.index('up')}"
        raise CheckpointError(
            f"{stage.checkpoint.path}: missing every key of {missing}.*, expected its weights; the file is incomplete"
        )
    return kinds


def _check_kernel(stage: Stage, name: str, resolution: int) -> None:
    """Convolutions are 1x1 exactly at resolution 1; otherwise the ladder of resolutions was guessed wrong."""
    tensor = stage.tensors.get(f"{name}.c2.weight")
    if tensor is None or tensor.ndim != 4:
        return  # reported as missing or misshapen with the rest
    if (tensor.shape[-1] == 1) != (resolution == 1):
        raise _exotic(stage, name, f"{tensor.shape[-1]}x{tensor.shape[-1]} convolutions where resolution {resolution} is")


def _exotic(stage: Stage, where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{stage.checkpoint.path}: found a VAE outside the reference's convention ({stage.prefix}{where}: {what}), expected "
        f"a transition after every pooling or upsampling layer; {ASK}"
    )


def _width(stage: Stage, name: str) -> int:
    """A residual block's channels, by the majority of the tensors that know them."""
    sources = (("c1.weight", 1), ("c4.weight", 0), ("c4.bias", 0))
    return majority(stage.tensors, [(f"{name}.{leaf}", axis) for leaf, axis in sources]) or _missing(stage, name)


def _axis(stage: Stage, key: str, axis: int) -> int:
    return majority(stage.tensors, [(key, axis)]) or _missing(stage, key)


def _missing(stage: Stage, name: str) -> int:
    raise CheckpointError(
        f"{stage.checkpoint.path}: missing {stage.prefix}{name}, expected the weights of a layer that the blocks name; the "
        f"file is incomplete or the blocks are not its own: {ASK}"
    )


def majority(tensors: Tensors, sources: Iterable[tuple[str, int]]) -> int | None:
    """The size on which most of the (key, axis) pairs agree: one misshapen tensor must not bend the architecture."""
    sizes = Counter(tensors[key].shape[axis] for key, axis in sources if key in tensors and tensors[key].ndim > axis)
    return sizes.most_common(1)[0][0] if sizes else None


def _check_resolutions(stage: Stage, spec: VAESpec) -> None:
    """Walk both halves: every block must sit at the resolution it names; the walk ends at 1 and at the image's side."""
    size, path = spec.image_size, stage.checkpoint.path
    for half, text, start, end in (("enc", spec.enc_blocks, size, 1), ("dec", spec.dec_blocks, 1, size)):
        current = start
        for block in parse_blocks(text):
            if block.kind == "turn":
                fits, current = block.arg == current, block.arg
            else:
                fits = block.resolution == current
                current = {"down": current // max(block.arg, 1), "up": current * block.arg}.get(block.kind, current)
            if not fits:
                raise CheckpointError(
                    f"{path}: found the {half} blocks {text!r} changing resolution inconsistently at {block.resolution}, "
                    f"expected each block at the resolution that it names (image size {size}); {ASK}"
                )
        if current != end:
            raise CheckpointError(
                f"{path}: found the {half} blocks {text!r} ending at resolution {current}, expected {end}; {ASK}"
            )
    for text in (spec.enc_channels, spec.dec_channels):
        if 1 not in parse_channels(text):
            raise CheckpointError(
                f"{path}: found VAE channels {text!r} without resolution 1, expected the latent's width; {ASK}"
            )
