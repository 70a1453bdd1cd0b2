"""The generator of denoising diffusion GANs (Xiao et al. 2022, https://arxiv.org/abs/2112.07804), under its code's keys.

An NCSN++ UNet whose norms are scaled and shifted by a latent: `embed_latent` and `rows` hold what depends on the timestep
and the latent alone, `denoise` what remains for every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from export.models.unet import sinusoid

EPSILON = 1e-6  # of group norms
TAPS = (1.0, 3.0, 3.0, 1.0)  # of the filter around every change of size
ROOT_HALF = math.sqrt(0.5)  # what a residual sum is scaled by


@dataclass(frozen=True)
class GeneratorSpec:
    """A generator.

    channels       of the images
    base           width of the first level;  widths: of each level
    blocks         residual blocks of a level on the way down, one more on the way up
    attends        for each level whether it attends
    latent         numbers of a latent;  embedding: what they become, through `layers` layers
    """

    channels: int
    base: int
    widths: tuple[int, ...]
    blocks: int
    attends: tuple[bool, ...]
    latent: int
    embedding: int
    layers: int

    @property
    def multiple(self) -> int:
        """What height and width of the images are multiples of."""
        return 1 << (len(self.widths) - 1)


def groups(channels: int) -> int:
    """Groups of a norm."""
    return min(channels // 4, 32)


class LatentNorm(nn.Module):
    """Group normalisation whose gamma, less one, and beta are a slice of a row, [N, 2 C]; `style` makes both of the embedded
    latent."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups(channels), channels, eps=EPSILON, affine=False)
        self.style = nn.Linear(embedding, 2 * channels)

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        gamma, beta = row[:, :, None, None].chunk(2, dim=1)
        result: torch.Tensor = self.norm(x) * (1 + gamma) + beta
        return result

    def slice_of(self, embedded: torch.Tensor) -> torch.Tensor:
        """The slice of a row, of embedded latents [..., embedding]. What a row holds of a scale is less one in every network
        here."""
        gamma, beta = self.style(embedded).chunk(2, dim=-1)
        return torch.cat([gamma - 1, beta], dim=-1)


class Resampling(nn.Module):
    """Twice or half the size, filtered: each channel by itself."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.channels, self.up = channels, up
        kernel = smoothing(4.0 if up else 1.0)
        self.kernel = nn.Buffer(kernel.expand(channels, 1, 4, 4).clone(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apply = F.conv_transpose2d if self.up else F.conv2d
        return apply(x, self.kernel.to(x.dtype), stride=2, padding=1, groups=self.channels)


def smoothing(gain: float) -> torch.Tensor:
    """The filter, float32 [4, 4], which sums to `gain`."""
    taps = torch.tensor(TAPS, device="cpu")
    kernel = torch.outer(taps, taps)
    return kernel * (gain / kernel.sum())


class ResBlock(nn.Module):
    """norm, SiLU, resampling, conv, + time, norm, SiLU, conv, + skip, by the root of one half.

    resample: 0.5 halves and 2 doubles both branches; 1 does neither.
    row_widths: of the time's share of a row, and of both norms'.
    """

    def __init__(self, spec: GeneratorSpec, cin: int, cout: int, resample: float = 1) -> None:
        super().__init__()
        self.resample = resample
        self.GroupNorm_0 = LatentNorm(cin, spec.embedding)
        self.Conv_0 = nn.Conv2d(cin, cout, 3, padding=1)
        self.Dense_0 = nn.Linear(4 * spec.base, cout)
        self.GroupNorm_1 = LatentNorm(cout, spec.embedding)
        self.Conv_1 = nn.Conv2d(cout, cout, 3, padding=1)
        self.Conv_2 = nn.Conv2d(cin, cout, 1) if cin != cout or resample != 1 else nn.Identity()
        self.resampling = nn.Identity() if resample == 1 else Resampling(cin, up=resample > 1)
        self.row_widths = (cout, 2 * cin, 2 * cout)

    def forward(self, x: torch.Tensor, rows: Iterator[torch.Tensor]) -> torch.Tensor:
        time, first, second = next(rows), next(rows), next(rows)
        h = self.Conv_0(self.resampling(F.silu(self.GroupNorm_0(x, first)))) + time[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h, second)))
        result: torch.Tensor = (self.Conv_2(self.resampling(x)) + h) * ROOT_HALF
        return result


class NetworkInNetwork(nn.Module):
    """A linear map of every pixel's channels, [N, P, C]; W is [in, out]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.empty(channels, channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.W + self.b


class Attention(nn.Module):
    """Self-attention of one head over pixels, added by the root of one half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.GroupNorm_0 = nn.GroupNorm(groups(channels), channels, eps=EPSILON)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NetworkInNetwork(channels) for _ in range(4))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        h = self.NIN_3(self.softmax(q @ (k * self.scale).transpose(1, 2)) @ v)
        return (x + h.transpose(1, 2).reshape(x.shape)) * ROOT_HALF


class PyramidConv(nn.Module):
    """The image at half the size, with more channels: the filter and a 3 x 3 convolution of stride 2, one of 6 x 6."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(cin, cout, 3)

    def folded(self) -> nn.Conv2d:
        """Both as one convolution."""
        weight, kernel = self.Conv2d_0.weight, smoothing(1.0)[None, None]
        whole = F.conv_transpose2d(weight.reshape(-1, 1, 3, 3), kernel).reshape(*weight.shape[:2], 6, 6)
        layer = nn.Conv2d(weight.shape[1], len(weight), 6, stride=2, padding=2, device="meta")
        layer.weight, layer.bias = nn.Parameter(whole, requires_grad=False), self.Conv2d_0.bias
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.folded()(x)
        return result


class PixelNorm(nn.Module):
    """A latent [..., nz] by the root of the mean of its squares."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z / torch.sqrt(z.square().mean(dim=-1, keepdim=True) + 1e-8)


class Generator(nn.Module):
    """x0 of a state x [N, C, H, W], an integer timestep and a latent; H and W are multiples of `spec.multiple`."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.all_modules = nn.ModuleList(self._layers())
        z: list[nn.Module] = [PixelNorm(), nn.Linear(spec.latent, spec.embedding), nn.SiLU()]
        for _ in range(spec.layers):
            z += [nn.Linear(spec.embedding, spec.embedding), nn.SiLU()]
        self.z_transform = nn.Sequential(*z)

    def _layers(self) -> Iterator[nn.Module]:
        """In the order of the reference's keys, which is that in which they run."""
        spec = self.spec
        yield from (nn.Linear(spec.base, 4 * spec.base), nn.Linear(4 * spec.base, 4 * spec.base))
        yield nn.Conv2d(spec.channels, spec.base, 3, padding=1)
        skips, channels, pyramid = [spec.base], spec.base, spec.channels
        last = len(spec.widths) - 1
        for level, width in enumerate(spec.widths):
            for _ in range(spec.blocks):
                yield ResBlock(spec, channels, width)
                channels = width
                yield from self._attention(level)
                skips.append(channels)
            if level < last:
                yield from (ResBlock(spec, channels, channels, 0.5), PyramidConv(pyramid, channels))
                pyramid = channels
                skips.append(channels)
        yield from (ResBlock(spec, channels, channels), Attention(channels), ResBlock(spec, channels, channels))
        for level, width in reversed([*enumerate(spec.widths)]):
            for _ in range(spec.blocks + 1):
                yield ResBlock(spec, channels + skips.pop(), width)
                channels = width
            yield from self._attention(level)
            if level > 0:
                yield ResBlock(spec, channels, channels, 2)
        yield from (nn.GroupNorm(groups(channels), channels, eps=EPSILON), nn.Conv2d(channels, spec.channels, 3, padding=1))

    def _attention(self, level: int) -> list[nn.Module]:
        return [Attention(self.spec.widths[level])] if self.spec.attends[level] else []

    @property
    def row_widths(self) -> list[int]:
        """Of the slices of a row, in the order in which blocks take them."""
        return [width for block in self.all_modules if isinstance(block, ResBlock) for width in block.row_widths]

    def embed_times(self, sinusoids: torch.Tensor) -> torch.Tensor:
        """[S, base] -> [S, 4 base], the embedding of timesteps behind its last SiLU."""
        first, second = self.all_modules[0], self.all_modules[1]
        return F.silu(second(F.silu(first(sinusoids))))

    def embed_latent(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [..., nz] -> [..., embedding]."""
        embedded: torch.Tensor = self.z_transform(z)
        return embedded

    def rows(self, sinusoids: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """sinusoids [S, base] and latents z [N, S, nz] -> [S, N, R]: the time, gamma less one and beta of every block."""
        times = self.embed_times(sinusoids)[:, None].expand(-1, z.shape[0], -1)
        latents = self.embed_latent(z).transpose(0, 1)
        blocks = [block for block in self.all_modules if isinstance(block, ResBlock)]
        parts = [
            part
            for block in blocks
            for part in (block.Dense_0(times), block.GroupNorm_0.slice_of(latents), block.GroupNorm_1.slice_of(latents))
        ]
        return torch.cat(parts, dim=-1)

    def denoise(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """x0 in [-1, 1] from x and row [N, R]."""
        spec, layers = self.spec, iter(self.all_modules[2:])
        rows = iter(row.split(self.row_widths, dim=1))
        h, pyramid = next(layers)(x), x
        skips = [h]
        for level, attends in enumerate(spec.attends):
            for _ in range(spec.blocks):
                h = next(layers)(h, rows)
                h = next(layers)(h) if attends else h
                skips.append(h)
            if level < len(spec.widths) - 1:
                h = next(layers)(h, rows)
                h = pyramid = (next(layers)(pyramid) + h) * ROOT_HALF
                skips.append(h)
        h = next(layers)(h, rows)
        h = next(layers)(h)
        h = next(layers)(h, rows)
        for level in reversed(range(len(spec.widths))):
            for _ in range(spec.blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], dim=1), rows)
            h = next(layers)(h) if spec.attends[level] else h
            if level > 0:
                h = next(layers)(h, rows)
        norm, conv = layers
        return torch.tanh(conv(F.silu(norm(h))))


class GeneratorTable(nn.Module):
    """timesteps int64 [S], z [N, S, nz] -> rows [S, N, R]. The sinusoids of all timesteps are a stored table."""

    def __init__(self, generator: Generator, T: int) -> None:
        super().__init__()
        self.generator = generator
        self.sinusoids = nn.Buffer(sinusoid(torch.arange(T), generator.spec.base, "ddpm"))

    def forward(self, timesteps: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.generator.rows(self.sinusoids.index_select(0, timesteps), z)


class GeneratorStep(nn.Module):
    """x, row -> x0."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.generator.denoise(x, row)
