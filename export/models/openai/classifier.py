"""The classifier that guides a denoiser: its contracting half with a pool, under the keys of guided-diffusion's own.

    logits = classifier(x, row),  row = rows(timesteps)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import Contracting, run_block
from export.models.unet import NORM_GROUPS

ATTENTION, ADAPTIVE, SPATIAL, SPATIAL_V2 = POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
HIDDEN = 2048  # of the pools over all maps


@dataclass(frozen=True)
class ClassifierSpec:
    """A classifier: `unet`, whose out_channels are the classes; its pool; height and width of the images that the attention
    pool has positions for."""

    unet: OpenAIUNetSpec
    pool: str
    size: tuple[int, int]

    @property
    def classes(self) -> int:
        """How many."""
        return self.unet.out_channels

    @property
    def last(self) -> tuple[int, int]:
        """Height and width of the last map."""
        factor = self.unet.multiple
        return self.size[0] // factor, self.size[1] // factor


class AttentionPool(nn.Module):
    """The mean of all pixels as a token before them, positions added; attention, of which the mean's answer is the result.

    q, k and v are [(q k v), head, channel] here whatever the order inside the other attention.
    """

    def __init__(self, pixels: int, channels: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(channels, pixels + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.positional_embedding
        q, k, v = self.qkv_proj(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # [N, heads, width, tokens]
        weights = (q[..., :1].transpose(2, 3) @ k / math.sqrt(q.shape[2])).softmax(dim=-1)
        seen = (v @ weights.transpose(2, 3)).flatten(1, 2)
        logits: torch.Tensor = self.c_proj(seen)[..., 0]
        return logits


class Classifier(Contracting):
    """Logits [N, classes] of a noised image x [N, C, H, W] in about [-1, 1]."""

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__(spec.unet)
        self.pool = spec.pool
        channels, pixels = self.skips[-1], spec.last[0] * spec.last[1]
        norm = (nn.GroupNorm(NORM_GROUPS, channels), nn.SiLU())
        if spec.pool == ATTENTION:
            self.out = nn.Sequential(*norm, AttentionPool(pixels, channels, spec.unet.heads(channels), spec.classes))
        elif spec.pool == ADAPTIVE:
            last = nn.Conv2d(channels, spec.classes, 1)
            self.out = nn.Sequential(*norm, nn.AdaptiveAvgPool2d(1), last, nn.Flatten())
        else:
            wide = sum(self.skips) + channels
            between = (nn.ReLU(),) if spec.pool == SPATIAL else (nn.GroupNorm(NORM_GROUPS, HIDDEN), nn.SiLU())
            self.out = nn.Sequential(nn.Linear(wide, HIDDEN), *between, nn.Linear(HIDDEN, spec.classes))

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """x [N, C, H, W], row [1 or N, R] -> logits [N, classes]."""
        rows = iter(row.split([block.row_width for block in self._res_blocks()], dim=1))
        h, means = x, []
        for block in [*self.input_blocks, self.middle_block]:
            h = run_block(block, h, rows, iter(()))
            means.append(h.mean(dim=(2, 3)))
        of_maps = self.pool in (SPATIAL, SPATIAL_V2)
        logits: torch.Tensor = self.out(torch.cat(means, dim=1) if of_maps else h)
        return logits
