"""The UNet of guided-diffusion and, with transformers, of latent diffusion: under their keys, split at timestep and context.

`timestep_rows` holds what depends on the timestep alone, `keys_values` what depends on the conditioning tokens alone; each
is run once. `denoise` is what remains for every step, and `forward` is their composition.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn

from export.models.openai.spade import Spade, Spades, modulations
from export.models.openai.spec import OpenAIUNetSpec
from export.models.unet import NORM_GROUPS, Upsample, sinusoid


class ResBlock(nn.Module):
    """norm, SiLU, resampling, conv, + embedding, norm, SiLU, conv, + skip; `row` is its slice of the timestep table.

    resample: 0.5 halves by averaging, 2 doubles by repeating, on both branches; 1 does neither.
    """

    def __init__(self, spec: OpenAIUNetSpec, cin: int, cout: int, resample: float = 1) -> None:
        super().__init__()
        self.scale_shift = spec.scale_shift
        self.resample = resample
        self.row_width = cout * (2 if spec.scale_shift else 1)
        self.in_layers = nn.Sequential(nn.GroupNorm(NORM_GROUPS, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * spec.model_channels, self.row_width))
        last = nn.Conv2d(cout, cout, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(NORM_GROUPS, cout), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    @property
    def projection(self) -> nn.Linear:
        """The layer that makes the row of the embedding behind its SiLU."""
        layer = self.emb_layers[1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        row = row[:, :, None, None]
        norm, act, conv = self.in_layers
        h = conv(self._resampled(act(norm(x))))
        norm, act, _, conv = self.out_layers
        if self.scale_shift:
            scale, shift = row.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + row)
        skip: torch.Tensor = self.skip_connection(self._resampled(x))
        return skip + conv(act(h))

    def _resampled(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample < 1:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample > 1 else x


class SpadeBlock(ResBlock):
    """The same behind norms that a label map scales and shifts: gamma and beta of the first, and of the second."""

    def __init__(self, spec: OpenAIUNetSpec, cin: int, cout: int, resample: float = 1) -> None:
        super().__init__(spec, cin, cout, resample)
        assert spec.map_channels is not None, "a UNet without a label map has ResBlocks"
        self.in_norm, self.out_norm = Spade(cin, spec.map_channels), Spade(cout, spec.map_channels)
        self.in_layers = nn.Sequential(nn.SiLU(), self.in_layers[2])
        self.out_layers = nn.Sequential(nn.SiLU(), nn.Identity(), self.out_layers[3])

    def forward(self, x: torch.Tensor, row: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        row = row[:, :, None, None]
        act, conv = self.in_layers
        h = conv(self._resampled(act(self.in_norm(x, *maps[:2]))))
        if self.scale_shift:
            scale, shift = row.chunk(2, dim=1)
            h = self.out_norm(h, *maps[2:]) * (1 + scale) + shift
        else:
            h = self.out_norm(h + row, *maps[2:])
        skip: torch.Tensor = self.skip_connection(self._resampled(x))
        result: torch.Tensor = self.out_layers(h)
        return skip + result


class AttentionBlock(nn.Module):
    """Multi-head self-attention over pixels; q, k and v lie side by side within each head: [head, (q k v), channel]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, channels, height, width = x.shape
        pixels = height * width
        qkv = self.qkv(self.norm(x).reshape(-1, channels, pixels))
        q, k, v = qkv.reshape(-1, self.heads, 3, channels // self.heads, pixels).transpose(-1, -2).unbind(2)
        h = self.softmax(q @ (k * self.scale).transpose(-1, -2)) @ v
        h = self.proj_out(h.transpose(-1, -2).reshape(-1, channels, pixels))
        return x + h.reshape(x.shape)


class Attention(nn.Module):
    """Attention of queries [N, P, width] to keys and values [N, L, width] that were projected already."""

    def __init__(self, width: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.scale = (width // heads) ** -0.5
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_dim, width, bias=False)
        self.to_v = nn.Linear(context_dim, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        q = self._by_head(self.to_q(x))
        k, v = (self._by_head(part.to(q.dtype)) for part in (keys, values))  # the graph's input beside a query in half
        h = self.softmax(q @ (k * self.scale).transpose(-1, -2)) @ v
        out: torch.Tensor = self.to_out(h.transpose(1, 2).reshape(x.shape))
        return out

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """[N, L, width] -> [N, heads, L, width / heads]."""
        return x.reshape(-1, x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class GEGLU(nn.Module):
    """A projection in two halves, one gated by the GELU (of the error function) of the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        result: torch.Tensor = x * self.act(gate)
        return result


class FeedForward(nn.Module):
    """GEGLU of four times the width, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.net(x)
        return result


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = Attention(width, heads, width)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, heads, context_dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, self.attn1.to_k(h), self.attn1.to_v(h))
        lone = keys.shape[1] == 1  # the softmax over one token, as a class gives, is 1 whatever the query
        x = x + (self.attn2.to_out(values) if lone else self.attn2(self.norm2(x), keys, values))
        result: torch.Tensor = x + self.ff(self.norm3(x))
        return result


class SpatialTransformer(nn.Module):
    """Transformer blocks over pixels; `parts` are the keys and values of its blocks in turn."""

    def __init__(self, spec: OpenAIUNetSpec, channels: int, heads: int) -> None:
        super().__init__()
        assert spec.context_dim is not None, "a UNet without context has AttentionBlocks"
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        blocks = [TransformerBlock(channels, heads, spec.context_dim) for _ in range(spec.depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, parts: Iterator[torch.Tensor]) -> torch.Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, next(parts), next(parts))
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.op(x)
        return result


class Contracting(nn.Module):
    """The time embedding, the contracting path and the middle: what a denoiser and a classifier begin with.

    skips: the channels of every map that the path leaves behind.
    """

    def __init__(self, spec: OpenAIUNetSpec) -> None:
        super().__init__()
        self.spec = spec
        base, width = spec.model_channels, 4 * spec.model_channels
        self.time_embed = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(spec.in_channels, spec.stem, 3, padding=1)])])
        self.skips = self._build_inputs()
        channels = self.skips[-1]
        middle = (self._block(channels, channels) for _ in range(2))
        self.middle_block = nn.ModuleList([next(middle), self._attention(channels), next(middle)])

    def _build_inputs(self) -> list[int]:
        """Append the contracting path and return the channels of every map that a skip connection carries."""
        spec = self.spec
        channels = spec.stem
        skips = [channels]
        for level, width in enumerate(spec.widths):
            for _ in range(spec.num_res_blocks):
                block = ResBlock(spec, channels, width)
                channels = width
                self.input_blocks.append(nn.ModuleList([block, *self._attends(level, channels)]))
                skips.append(channels)
            if level + 1 < len(spec.channel_mult):
                down = ResBlock(spec, channels, channels, 0.5) if spec.resample_blocks else Downsample(channels)
                self.input_blocks.append(nn.ModuleList([down]))
                skips.append(channels)
        return skips

    def _block(self, cin: int, cout: int, resample: float = 1) -> ResBlock:
        """A residual block of the middle or of what comes behind it."""
        kind = ResBlock if self.spec.map_channels is None else SpadeBlock
        return kind(self.spec, cin, cout, resample)

    def _attends(self, level: int, channels: int) -> list[nn.Module]:
        """The attention behind a residual block of this level, if it has one."""
        return [self._attention(channels)] if 1 << level in self.spec.attention_factors else []

    def _attention(self, channels: int) -> nn.Module:
        spec = self.spec
        heads = spec.heads(channels)
        return AttentionBlock(channels, heads) if spec.context_dim is None else SpatialTransformer(spec, channels, heads)

    @property
    def projections(self) -> list[nn.Linear]:
        """The embedding's projections of all residual blocks, in the order in which the timestep table holds them."""
        return [block.projection for block in self._res_blocks()]

    def _res_blocks(self) -> list[ResBlock]:
        """In the order in which they run, which is that of registration."""
        return [module for module in self.modules() if isinstance(module, ResBlock)]

    @property
    def row_width(self) -> int:
        """Width R of one row of the timestep table."""
        return sum(block.row_width for block in self._res_blocks())

    def timestep_rows(self, timesteps: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """Embed timesteps [S] (and what is added to their embedding, [S, width]) into rows [S, R]."""
        emb = self.time_embed(sinusoid(timesteps, self.spec.model_channels, "openai"))
        emb = emb if added is None else emb + added
        return torch.cat([layer(F.silu(emb)) for layer in self.projections], dim=-1)


class OpenAIUNet(Contracting):
    """eps, x0 or v of a state [N, C, H, W]; H and W are multiples of two to the number of levels less one."""

    def __init__(self, spec: OpenAIUNetSpec) -> None:
        super().__init__(spec)
        self.label_emb = None if spec.classes is None else nn.Embedding(spec.classes, 4 * spec.model_channels)
        self.output_blocks = nn.ModuleList()
        channels = self._build_outputs(self.skips[-1], self.skips)
        last = nn.Conv2d(channels, spec.out_channels, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(NORM_GROUPS, channels), nn.SiLU(), last)

    def _build_outputs(self, channels: int, skips: list[int]) -> int:
        """Append the expanding path, consuming `skips` from the end, and return the channels that leave it."""
        spec, skips = self.spec, list(skips)
        for level in reversed(range(len(spec.channel_mult))):
            for index in range(spec.num_res_blocks + 1):
                block = self._block(channels + skips.pop(), spec.widths[level])
                channels = spec.widths[level]
                modules = [block, *self._attends(level, channels)]
                if level > 0 and index == spec.num_res_blocks:
                    modules.append(self._block(channels, channels, 2) if spec.resample_blocks else Upsample(channels))
                self.output_blocks.append(nn.ModuleList(modules))
        return channels

    @property
    def context_projections(self) -> list[nn.Linear]:
        """The projections of the context to keys and values of all transformer blocks, in the order of `keys_values`."""
        return [part for attention in self._crossed() for part in (attention.to_k, attention.to_v)]

    def spades(self) -> Spades:
        """The norms of a label map in the order in which they run, each with its downsampling factor."""
        factor, found = self.spec.multiple, []
        for module in self.modules():
            if isinstance(module, SpadeBlock):
                found.append((module.in_norm, factor))
                factor //= 2 if module.resample > 1 else 1
                found.append((module.out_norm, factor))
            elif isinstance(module, Upsample):
                factor //= 2
        return found

    def _crossed(self) -> list[Attention]:
        """The cross-attention of all transformer blocks, in the order in which they run."""
        return [module.attn2 for module in self.modules() if isinstance(module, TransformerBlock)]

    @property
    def context_width(self) -> int:
        """Width K of the keys and values of one token: 0 without cross-attention."""
        return sum(2 * attention.width for attention in self._crossed())

    def keys_values(self, context: torch.Tensor) -> torch.Tensor:
        """Keys and values [N, L, K] of all transformer blocks from the context [N, L, context_dim]."""
        return torch.cat([layer(context) for layer in self.context_projections], dim=-1)

    def denoise(
        self,
        x: torch.Tensor,
        row: torch.Tensor,
        keys_values: torch.Tensor | None = None,
        cond: torch.Tensor | None = None,
        maps: Iterator[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The output [N, out_channels, H, W] from x [N, C, H, W], row [1 or N, R], keys_values [N, L, K] where there is a
        context, cond [N, in_channels - C, H, W] where the network takes more channels than x has, and gamma and beta of
        each of `spades` where there is a label map."""
        rows = iter(row.split([block.row_width for block in self._res_blocks()], dim=1))
        parts: Iterator[torch.Tensor] = iter(()) if maps is None else maps
        if keys_values is not None:
            parts = iter(keys_values.split([width for at in self._crossed() for width in (at.width, at.width)], dim=2))
        h = x if cond is None else torch.cat([x, cond], dim=1)
        skips = []
        for block in self.input_blocks:
            h = run_block(block, h, rows, parts)
            skips.append(h)
        h = run_block(self.middle_block, h, rows, parts)
        for block in self.output_blocks:
            h = run_block(block, torch.cat([h, skips.pop()], dim=1), rows, parts)
        result: torch.Tensor = self.out(h)
        return result

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        cond: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        segmap: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The output with one timestep (and label) per sample: timesteps, labels int64 [N], context [N, L, context_dim],
        segmap [N, map_channels, H, W]."""
        keys_values = None if context is None else self.keys_values(context)
        added = None if self.label_emb is None or labels is None else self.label_emb(labels)
        maps = modulations(self.spades(), None, segmap, (x.shape[2], x.shape[3]), 1 << len(self.spec.channel_mult))
        return self.denoise(x, self.timestep_rows(timesteps, added), keys_values, cond, maps)


def run_block(
    block: nn.Module, h: torch.Tensor, rows: Iterator[torch.Tensor], parts: Iterator[torch.Tensor]
) -> torch.Tensor:
    """One entry of a path: its modules in turn, each with what it takes of the rows and of the keys and values."""
    for module in block.children():
        if isinstance(module, SpadeBlock):
            h = module(h, next(rows), *islice(parts, 4))
        elif isinstance(module, ResBlock):
            h = module(h, next(rows))
        elif isinstance(module, SpatialTransformer):
            h = module(h, parts)
        else:
            h = module(h)
    return h
