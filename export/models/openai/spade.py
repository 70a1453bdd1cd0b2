"""Norms that a label map scales and shifts (SPADE, Park et al. 2019, https://arxiv.org/abs/1903.07291), and the map.

What a norm takes of the label map depends on neither x nor the timestep: of small levels it is made once, before the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from export.models.latent.conditioners import Rescaler
from export.models.latent.spec import RescalerConditionerSpec
from export.models.unet import NORM_GROUPS

HIDDEN = 128  # channels between the label map and what is made of it


class Spade(nn.Module):
    """Group normalisation whose gamma and beta are maps: x, gamma, beta [N, C, h, w] -> norm(x) (1 + gamma) + beta."""

    def __init__(self, channels: int, map_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(map_channels, HIDDEN, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(HIDDEN, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(HIDDEN, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(x) * (1 + gamma) + beta
        return result

    def modulation(self, segmap: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
        """gamma and beta of a map [N, map_channels, H, W], of which every `factor`-th pixel is taken: the nearest one."""
        hidden = self.mlp_shared(segmap[:, :, ::factor, ::factor])
        return self.mlp_gamma(hidden), self.mlp_beta(hidden)


Spades = Sequence[tuple[Spade, int]]  # each with how many pixels of the image one of its map has a side


class Modulation(nn.Module):
    """segmap [N, map_channels, H, W] -> gamma and beta of several norms in turn, as one row [N, M]."""

    def __init__(self, spades: Spades) -> None:
        super().__init__()
        self.spades = nn.ModuleList([spade for spade, _ in spades])
        self.factors = [factor for _, factor in spades]

    def forward(self, segmap: torch.Tensor) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        for spade, factor in zip(self.spades, self.factors, strict=True):
            assert isinstance(spade, Spade)
            parts += (part.flatten(1) for part in spade.modulation(segmap, factor))
        return torch.cat(parts, dim=1)


def modulation_width(spades: Spades, size: tuple[int, int]) -> int:
    """M, for images of this height and width."""
    return sum(2 * spade.channels * (size[0] // factor) * (size[1] // factor) for spade, factor in spades)


def modulations(
    spades: Spades, made: torch.Tensor | None, segmap: torch.Tensor | None, size: tuple[int, int], made_from: int
) -> Iterator[torch.Tensor]:
    """gamma and beta of each norm in turn: of `made` [N, M] where its factor is at least `made_from`, else of the segmap."""
    begin = 0
    for spade, factor in spades:
        if factor < made_from:
            assert segmap is not None, "what is not made before needs the map"
            yield from spade.modulation(segmap, factor)
            continue
        assert made is not None, "what is made before is given"
        shape = (spade.channels, size[0] // factor, size[1] // factor)
        count = shape[0] * shape[1] * shape[2]
        for _ in range(2):
            yield made[:, begin : begin + count].reshape(-1, *shape)
            begin += count


class LabelMap(nn.Module):
    """labels int64 [N, H, W], and instances of that shape where there are edges -> segmap [N, classes (+ 1), H, W].

    One-hot, and last 1 where a pixel's left, right, upper or lower neighbour belongs to another instance.
    """

    def __init__(self, classes: int, *, edges: bool) -> None:
        super().__init__()
        self.edges = edges
        self.one_hot = Rescaler(RescalerConditionerSpec(classes, 0, None))

    def forward(self, labels: torch.Tensor, instances: torch.Tensor | None = None) -> torch.Tensor:
        segmap: torch.Tensor = self.one_hot(labels)
        if not self.edges:
            return segmap
        assert instances is not None, "edges are those of instances"
        return torch.cat([segmap, edges_of(instances)[:, None]], dim=1)


def edges_of(instances: torch.Tensor) -> torch.Tensor:
    """float32 [N, H, W]: 1 where one of the four neighbours is another, 0 elsewhere."""
    across = (instances[:, :, 1:] != instances[:, :, :-1]).float()
    down = (instances[:, 1:] != instances[:, :-1]).float()
    pad = nn.functional.pad
    sides = pad(across, (1, 0)) + pad(across, (0, 1)) + pad(down, (0, 0, 1, 0)) + pad(down, (0, 0, 0, 1))
    return sides.clamp(max=1.0)
