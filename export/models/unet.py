"""The refiner's UNet, one for both published layouts, split at the timestep.

`timestep_rows` holds everything that depends on the timestep (and z) alone and is run once per sampling schedule;
`denoise` is what remains for every step. `forward` is their composition, as in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

NORM_GROUPS = 32


@dataclass(frozen=True)
class UNetSpec:
    """Architecture of an eps network.

    Attributes:
        layout: "openai" (guided-diffusion) or "ddim" (DDIM repository). Besides the keys it decides the norm's epsilon, the
            order and spacing of the sinusoids, the padding before a stride-2 convolution and the attention scale.
        in_channels: those of the image (1, 3 or 4), or twice as many when the reconstruction is concatenated.
        attention_levels: levels (0 = full resolution) whose residual blocks are followed by self-attention.
        heads: attention heads; the weights cannot tell this number.
        z_dim: width of z when the network is conditioned on it, else None.
        scale_shift: the embedding scales and shifts the second norm instead of being added before it.
    """

    layout: str
    image_size: int
    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    blocks_per_level: int
    attention_levels: tuple[int, ...]
    heads: int
    z_dim: int | None = None
    scale_shift: bool = False

    @property
    def conditional(self) -> bool:
        """True when the network takes the VAE reconstruction beside x."""
        return self.in_channels == 2 * self.out_channels

    @property
    def norm_eps(self) -> float:
        """Epsilon of every GroupNorm."""
        return 1e-5 if self.layout == "openai" else 1e-6


def sinusoid(timesteps: torch.Tensor, width: int, layout: str) -> torch.Tensor:
    """Sinusoidal position embedding [S, width] of integer timesteps [S]; the two layouts order and space it differently."""
    half = width // 2
    last = half if layout == "openai" else half - 1
    # float32 as in the reference: at t = 999 a float64 table would differ by more than the parity bound.
    frequency = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000) / last))
    angle = timesteps[:, None].float() * frequency[None, :]
    parts = (angle.cos(), angle.sin()) if layout == "openai" else (angle.sin(), angle.cos())
    return F.pad(torch.cat(parts, dim=1), (0, width % 2))


class ResBlock(nn.Module):
    """norm, SiLU, conv, + embedding, norm, SiLU, conv, + skip. `row` is this block's slice of the timestep table."""

    def __init__(self, spec: UNetSpec, cin: int, cout: int) -> None:
        super().__init__()
        self.scale_shift = spec.scale_shift
        self.norm1 = nn.GroupNorm(NORM_GROUPS, cin, spec.norm_eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.emb = nn.Linear(4 * spec.model_channels, cout * (2 if spec.scale_shift else 1))
        self.norm2 = nn.GroupNorm(NORM_GROUPS, cout, spec.norm_eps)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        row = row[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(x)))
        if self.scale_shift:
            scale, shift = row.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + row)
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Multi-head self-attention over pixels. `qkv` is ordered [q | k | v], heads inside each, whatever the layout read."""

    def __init__(self, spec: UNetSpec, channels: int) -> None:
        super().__init__()
        self.heads = spec.heads
        # The DDIM layout scales by all channels whatever the number of heads.
        self.scale = (channels // spec.heads if spec.layout == "openai" else channels) ** -0.5
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, spec.norm_eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.softmax = nn.Softmax(dim=-1)  # a module, so that export/precision.py can keep it in float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(-1, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        weights = self.softmax(q @ (k * self.scale).transpose(-1, -2))
        h = (weights @ v).transpose(-1, -2).reshape(-1, channels, height, width)
        return x + self.proj(h)


class Downsample(nn.Module):
    """Stride-2 convolution; the DDIM layout pads right and bottom only."""

    def __init__(self, spec: UNetSpec, channels: int) -> None:
        super().__init__()
        self.symmetric = spec.layout == "openai"
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if self.symmetric else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """A residual block with what follows it: attention on some levels, upsampling after a level's last block."""

    def __init__(self, spec: UNetSpec, cin: int, cout: int, attention: bool, upsample: bool = False) -> None:
        super().__init__()
        self.res = ResBlock(spec, cin, cout)
        self.attn = Attention(spec, cout) if attention else None
        self.up = Upsample(cout) if upsample else None

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        x = self.res(x, row)
        if self.attn is not None:
            x = self.attn(x)
        return x if self.up is None else self.up(x)


class UNet(nn.Module):
    """eps(x_t, cond, t, z): the noise prediction network of DiffuseVAE (section 4, both formulations)."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        base, width = spec.model_channels, 4 * spec.model_channels
        self.time_mlp = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))
        self.z_mlp = None
        if spec.z_dim is not None:
            self.z_mlp = nn.Sequential(nn.Linear(spec.z_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Conv2d(spec.in_channels, base, 3, padding=1)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        skips = self._build_encoder(spec)
        channels = skips[-1]
        self.middle = nn.ModuleList(
            [Stage(spec, channels, channels, attention=True), Stage(spec, channels, channels, attention=False)]
        )
        channels = self._build_decoder(spec, channels, skips)
        self.out_norm = nn.GroupNorm(NORM_GROUPS, channels, spec.norm_eps)
        self.out_conv = nn.Conv2d(channels, spec.out_channels, 3, padding=1)

    def _build_encoder(self, spec: UNetSpec) -> list[int]:
        """Append the contracting path and return the channels of every map that a skip connection carries."""
        channels = spec.model_channels
        skips = [channels]
        for level, mult in enumerate(spec.channel_mult):
            for _ in range(spec.blocks_per_level):
                cout = mult * spec.model_channels
                self.encoder.append(Stage(spec, channels, cout, level in spec.attention_levels))
                channels = cout
                skips.append(channels)
            if level + 1 < len(spec.channel_mult):
                self.encoder.append(Downsample(spec, channels))
                skips.append(channels)
        return skips

    def _build_decoder(self, spec: UNetSpec, channels: int, skips: list[int]) -> int:
        """Append the expanding path, consuming `skips` from the end, and return the channels that leave it."""
        skips = list(skips)
        for level in reversed(range(len(spec.channel_mult))):
            cout = spec.channel_mult[level] * spec.model_channels
            for block in range(spec.blocks_per_level + 1):
                upsample = level > 0 and block == spec.blocks_per_level
                self.decoder.append(
                    Stage(spec, channels + skips.pop(), cout, level in spec.attention_levels, upsample)
                )
                channels = cout
        return channels

    def decoder_stages(self) -> list[Stage]:
        """The expanding path, typed: a ModuleList forgets what it holds."""
        return [module for module in self.decoder if isinstance(module, Stage)]

    def stages(self) -> list[Stage]:
        """Every stage with an embedding, in the order in which the timestep table holds their rows."""
        paths = [*self.encoder, *self.middle, *self.decoder]
        return [module for module in paths if isinstance(module, Stage)]

    def residual_convolutions(self) -> list[nn.Conv2d]:
        """Both of every residual block, in the order in which they run: a norm and an activation stand before each."""
        return [conv for stage in self.stages() for conv in (stage.res.conv1, stage.res.conv2)]

    @property
    def row_width(self) -> int:
        """Width R of one row of the timestep table."""
        return sum(stage.res.emb.out_features for stage in self.stages())

    def timestep_rows(self, timesteps: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """Embed integer timesteps [S] (with z [N, z_dim]: for every pair) into rows [S, R] (with z: [S, N, R])."""
        emb = self.time_mlp(sinusoid(timesteps, self.spec.model_channels, self.spec.layout))
        if self.z_mlp is not None and z is not None:
            emb = emb[:, None, :] + self.z_mlp(z)[None, :, :]
        return self._project(emb)

    def _project(self, emb: torch.Tensor) -> torch.Tensor:
        emb = F.silu(emb)
        return torch.cat([stage.res.emb(emb) for stage in self.stages()], dim=-1)

    def denoise(self, x: torch.Tensor, cond: torch.Tensor | None, row: torch.Tensor) -> torch.Tensor:
        """Predict eps [N, C, H, W] from x [N, C, H, W], cond in [-1, 1] of the same shape (or None) and row [1 or N, R]."""
        rows = iter(row.split([stage.res.emb.out_features for stage in self.stages()], dim=1))
        h = self.stem(x if cond is None else torch.cat([x, cond], dim=1))
        skips = [h]
        for module in self.encoder:
            h = module(h, next(rows)) if isinstance(module, Stage) else module(h)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, next(rows))
        for stage in self.decoder:
            h = stage(torch.cat([h, skips.pop()], dim=1), next(rows))
        return self.out_conv(F.silu(self.out_norm(h)))

    def forward(
        self, x: torch.Tensor, cond: torch.Tensor | None, timesteps: torch.Tensor, z: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict eps with one timestep (and z) per sample: timesteps int64 [N], z [N, z_dim]."""
        emb = self.time_mlp(sinusoid(timesteps, self.spec.model_channels, self.spec.layout))
        if self.z_mlp is not None and z is not None:
            emb = emb + self.z_mlp(z)
        return self.denoise(x, cond, self._project(emb))
