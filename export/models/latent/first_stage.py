"""The first stage of latent diffusion, KL or VQ, under the keys of a CompVis checkpoint.

Latents are unscaled here: `scale_factor` belongs to the diffusion, not to the autoencoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from export.models.latent.spec import FirstStageSpec
from export.models.unet import NORM_GROUPS, Upsample

NORM_EPS = 1e-6
SEARCHED = 1 << 20  # scores of pixels against codes that are in memory at a time for one image: 4 MiB


def leave_out(module: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Let `load_state_dict` pass over keys that begin so: what a checkpoint holds and inference has no use for."""

    def drop(_: nn.Module, state: dict[str, Any], prefix: str, *rest: object) -> None:
        for key in [key for key in state if key.startswith(tuple(prefix + left for left in prefixes))]:
            del state[key]

    module.register_load_state_dict_pre_hook(drop)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, + skip."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, cin, NORM_EPS)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, cout, NORM_EPS)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.nin_shortcut = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        result: torch.Tensor = self.nin_shortcut(x) + h
        return result


class Attention(nn.Module):
    """Self-attention of one head over pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, NORM_EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = self.softmax(q @ (k * x.shape[1] ** -0.5).transpose(1, 2)) @ v
        result: torch.Tensor = x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return result


class Downsample(nn.Module):
    """Stride-2 convolution that pads right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return result


class Level(nn.Module):
    """Residual blocks of one resolution, each with its attention where the resolution has some, and the resampling."""

    def __init__(self, spec: FirstStageSpec, level: int, blocks: Iterable[ResBlock], channels: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        attends = spec.attention and spec.resolution >> level in spec.attn_resolutions
        self.attn = nn.ModuleList([Attention(channels) for _ in self.block] if attends else [])
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        result: torch.Tensor = self.upsample(self.downsample(x))
        return result


class Middle(nn.Module):
    """A residual block, attention unless the stage has none, and a residual block."""

    def __init__(self, spec: FirstStageSpec, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels) if spec.attention else nn.Identity()
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return result


class Encoder(nn.Module):
    """Images to maps of z_channels, or of twice as many for KL."""

    def __init__(self, spec: FirstStageSpec) -> None:
        super().__init__()
        channels = spec.channels
        self.conv_in = nn.Conv2d(spec.in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, mult in enumerate(spec.channel_mult):
            widths = [channels, *[mult * spec.channels] * spec.num_res_blocks]
            channels = widths[-1]
            entry = Level(spec, level, (ResBlock(a, b) for a, b in pairwise(widths)), channels)
            if level + 1 < len(spec.channel_mult):
                entry.downsample = Downsample(channels)
            self.down.append(entry)
        self.mid = Middle(spec, channels)
        self.norm_out = nn.GroupNorm(NORM_GROUPS, channels, NORM_EPS)
        self.conv_out = nn.Conv2d(channels, spec.z_channels * (2 if spec.codes is None else 1), 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        result: torch.Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return result


class Decoder(nn.Module):
    """Maps of z_channels to images. `up` counts from the full resolution, as `down` does, and is run from its end."""

    def __init__(self, spec: FirstStageSpec) -> None:
        super().__init__()
        channels = spec.channel_mult[-1] * spec.channels
        self.conv_in = nn.Conv2d(spec.z_channels, channels, 3, padding=1)
        self.mid = Middle(spec, channels)
        levels: list[Level] = []
        for level, mult in reversed(list(enumerate(spec.channel_mult))):
            widths = [channels, *[mult * spec.channels] * (spec.num_res_blocks + 1)]
            channels = widths[-1]
            entry = Level(spec, level, (ResBlock(a, b) for a, b in pairwise(widths)), channels)
            if level > 0:
                entry.upsample = Upsample(channels)
            levels.append(entry)
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = nn.GroupNorm(NORM_GROUPS, channels, NORM_EPS)
        self.conv_out = nn.Conv2d(channels, spec.out_channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(list(self.up)):
            h = level(h)
        result: torch.Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return result


class Quantiser(nn.Module):
    """A codebook [codes, C], and the search for the nearest code."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def indices(self, latent: torch.Tensor, pixels: int | None = None) -> torch.Tensor:
        """The nearest code, int64 [N, H, W], of every position of a latent [N, C, H, W].

        Block by block of the codebook, so that no more than SEARCHED scores an image are in memory: all of them are 128 MiB
        for 8192 codes and 64 x 64 positions. pixels: of the latent that blocks are made for, where a graph takes any; None
        for this one's. In float32 whatever else is not: a rounded score is another code.
        """
        height, width = latent.shape[2:]
        # Nearest is where z.e - |e|^2 / 2 is largest; |z|^2, equal for all codes, would only cost digits.
        codes = self.embedding.weight.float()
        codebook = torch.cat([codes, codes.square().sum(dim=1, keepdim=True) / -2], dim=1)
        points = F.pad(latent.flatten(2).transpose(1, 2).float(), (0, 1), value=1.0)
        size = max(1, SEARCHED // (pixels or height * width))
        best = found = torch.empty(0)
        for start in range(0, len(codebook), size):
            # The largest one: OpenVINO's maximum and its place, apart, take ten times as long.
            score, index = (points @ codebook[start : start + size].T).topk(1)
            found = torch.where(score > best, index + start, found) if start else index
            best = torch.maximum(score, best) if start else score
        return found.reshape(-1, height, width)

    def forward(self, latent: torch.Tensor, pixels: int | None = None) -> torch.Tensor:
        """The nearest codes themselves, [N, C, H, W]; pixels: as of `indices`."""
        codes: torch.Tensor = self.embedding(self.indices(latent, pixels))
        return codes.permute(0, 3, 1, 2)


class StageEncoder(nn.Module):
    """The encoding half of a first stage."""

    LEFT_OUT: tuple[str, ...] = ("loss.", "decoder.", "post_quant_conv.", "quantize.")

    def __init__(self, spec: FirstStageSpec) -> None:
        super().__init__()
        self.spec = spec
        twice = 2 if spec.codes is None else 1
        self.encoder = Encoder(spec)
        self.quant_conv = nn.Conv2d(twice * spec.z_channels, twice * spec.embed_dim, 1)
        leave_out(self, self.LEFT_OUT)

    def moments(self, image: torch.Tensor) -> torch.Tensor:
        """What `encode` takes the mean of: for KL mean and log-variance, [N, 2 embed_dim, h, w], of an image in [-1, 1]."""
        moments: torch.Tensor = self.quant_conv(self.encoder(image))
        return moments

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] in [-1, 1] to latents [N, embed_dim, h, w]: the mean of KL, VQ before quantisation."""
        moments = self.moments(image)
        return moments.chunk(2, dim=1)[0] if self.spec.codes is None else moments


class FirstStage(StageEncoder):
    """The autoencoder."""

    LEFT_OUT = ("loss.",)

    def __init__(self, spec: FirstStageSpec) -> None:
        super().__init__(spec)
        self.decoder = Decoder(spec)
        self.post_quant_conv = nn.Conv2d(spec.embed_dim, spec.z_channels, 1)
        self.quantize = Quantiser(spec.codes, spec.embed_dim) if spec.codes is not None else None

    def indices(self, latent: torch.Tensor) -> torch.Tensor:
        """The nearest code, int64 [N, h, w], of every position of a latent [N, embed_dim, h, w]; only VQ has them."""
        assert self.quantize is not None, "a KL stage has no codebook"
        return self.quantize.indices(latent)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Map latents [N, embed_dim, h, w], of VQ by way of their nearest codes, to images [N, C, H, W], nominally in
        [-1, 1] and not clamped."""
        if self.quantize is not None:
            latent = self.quantize(latent)
        image: torch.Tensor = self.decoder(self.post_quant_conv(latent))
        return image
