"""The first stage: the residual VAE of DiffuseVAE, built from its four architecture strings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from engine.errors import ArgumentError

STEM_CHANNELS = 64  # the reference's first convolution has a fixed width

_TOKEN = re.compile(r"(\d+)(?:([xudt])(\d+))?")


@dataclass(frozen=True)
class Block:
    """One entry of an architecture string.

    `kind` is "res" (residual block), "down" (residual block, then average pooling by `arg`), "up" (nearest upsampling
    by `arg`) or "turn" (1x1 convolution from the channels of `resolution` to those of resolution `arg`).
    """

    kind: str
    resolution: int
    arg: int = 0


def parse_blocks(text: str) -> list[Block]:
    """Parse an architecture string such as ``"32x2,32d2,32t16,16x1"`` (xN repeat, dK pool, uK upsample, tR transition)."""
    kinds = {"d": "down", "u": "up", "t": "turn"}
    blocks: list[Block] = []
    for token in text.split(","):
        match = _TOKEN.fullmatch(token.strip())
        if match is None:
            raise ArgumentError(
                f"VAE block string: found {token!r} in {text!r}, expected entries like '32x2' (repeat), '32d2' "
                "(downsample), '16u2' (upsample) or '32t16' (transition)"
            )
        resolution, letter, arg = int(match[1]), match[2], int(match[3] or 1)
        if letter in (None, "x"):
            blocks += [Block("res", resolution)] * arg
        else:
            blocks.append(Block(kinds[letter], resolution, arg))
    return blocks


def parse_channels(text: str) -> dict[int, int]:
    """Parse a channel string such as ``"32:64,16:128,1:512"`` into {resolution: channels}."""
    try:
        pairs = (entry.split(":") for entry in text.split(","))
        return {int(resolution): int(channels) for resolution, channels in pairs}
    except ValueError:
        raise ArgumentError(f"VAE channel string: found {text!r}, expected 'RES:CHANNELS,RES:CHANNELS,…'") from None


@dataclass(frozen=True)
class VAESpec:
    """Architecture of a DiffuseVAE first stage: image side in pixels, the reference's four strings, channels."""

    image_size: int
    enc_blocks: str
    dec_blocks: str
    enc_channels: str
    dec_channels: str
    channels: int = 3

    @property
    def z_dim(self) -> int:
        """Width of the latent z: the channels at resolution 1."""
        return parse_channels(self.dec_channels)[1]


class ResBlock(nn.Module):
    """Pre-activation bottleneck: four convolutions (1x1, kxk, kxk, 1x1) of half the width, each behind a GELU."""

    def __init__(self, channels: int, kernel: int, pool: int = 1) -> None:
        super().__init__()
        width = channels // 2
        self.c1 = nn.Conv2d(channels, width, 1)
        self.c2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.c4 = nn.Conv2d(width, channels, 1)
        self.act = nn.GELU()  # a module, so that export/precision.py can keep it in float32
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        for conv in (self.c1, self.c2, self.c3, self.c4):
            h = conv(self.act(h))
        x = x + h
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


def _modules(blocks: list[Block], channels: dict[int, int]) -> Iterator[nn.Module]:
    for block in blocks:
        if block.kind == "turn":
            yield nn.Conv2d(channels[block.resolution], channels[block.arg], 1, bias=False)
        elif block.kind == "up":
            yield nn.Upsample(scale_factor=block.arg, mode="nearest")
        else:
            # A 3x3 kernel on a 1x1 map would multiply padding only, so the reference uses 1x1 there.
            kernel = 3 if block.resolution > 1 else 1
            yield ResBlock(channels[block.resolution], kernel, block.arg if block.kind == "down" else 1)


class Encoder(nn.Module):
    """Images in [0, 1] to the mean and log-variance of q(z | x)."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        channels = parse_channels(spec.enc_channels)
        self.in_conv = nn.Conv2d(spec.channels, STEM_CHANNELS, 3, padding=1, bias=False)
        self.block_mod = nn.Sequential(*_modules(parse_blocks(spec.enc_blocks), channels))
        self.mu = nn.Conv2d(channels[1], channels[1], 1, bias=False)
        self.logvar = nn.Conv2d(channels[1], channels[1], 1, bias=False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.block_mod(self.in_conv(image))
        return self.mu(h).flatten(1), self.logvar(h).flatten(1)


class Decoder(nn.Module):
    """Latents z to images in [0, 1]."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        channels = parse_channels(spec.dec_channels)
        self.block_mod = nn.Sequential(*_modules(parse_blocks(spec.dec_blocks), channels))
        self.last_conv = nn.Conv2d(channels[spec.image_size], spec.channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.last_conv(self.block_mod(z[:, :, None, None])))


class VAE(nn.Module):
    """The generator of the generator-refiner pair (DiffuseVAE, section 3); submodule names are the checkpoint's keys."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.enc = Encoder(spec)
        self.dec = Decoder(spec)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images [N, C, H, W] in [0, 1] to (mu [N, z_dim], logvar [N, z_dim])."""
        return self.enc(image)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Map latents [N, z_dim] to images [N, C, H, W] in [0, 1]."""
        return self.dec(z)
