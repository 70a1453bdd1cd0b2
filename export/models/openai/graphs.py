"""The UNet as graphs of a bundle, and what is made for it before the loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from export.models.openai.spade import modulations
from export.models.openai.unet import OpenAIUNet


class OpenAIDenoiser(nn.Module):
    """x, (cond), (keys_values), row -> the network's prediction (and variance): the UNet without its embedding."""

    def __init__(self, unet: OpenAIUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        x: torch.Tensor,
        *,
        cond: torch.Tensor | None = None,
        keys_values: torch.Tensor | None = None,
        row: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return self._outputs(self.unet.denoise(x, row, keys_values, cond))

    def _outputs(self, output: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not self.unet.spec.learned_variance:
            return output
        prediction, variance = output.chunk(2, dim=1)
        return prediction, variance


class MappedDenoiser(OpenAIDenoiser):
    """x, (segmap), (modulation), row -> the same of a UNet whose norms a label map scales and shifts.

    made_from: the downsampling factor from which on gamma and beta are in modulation; those of larger maps are made here.
    """

    def __init__(self, unet: OpenAIUNet, made_from: int) -> None:
        super().__init__(unet)
        self.made_from = made_from

    def forward(  # type: ignore[override]  # it takes other values by name
        self,
        x: torch.Tensor,
        *,
        segmap: torch.Tensor | None = None,
        modulation: torch.Tensor | None = None,
        row: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        maps = modulations(self.unet.spades(), modulation, segmap, (x.shape[2], x.shape[3]), self.made_from)
        return self._outputs(self.unet.denoise(x, row, maps=maps))


class LabelEmbedding(nn.Module):
    """label int64 [N] -> what is added to the time embedding, [N, width]."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.table(label)
        return embedding


class Enlarger(nn.Module):
    """low_resolution [N, C, h, w] -> cond [N, C, H, W] of the given size, bilinear."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, low_resolution: torch.Tensor) -> torch.Tensor:
        return F.interpolate(low_resolution, self.size, mode="bilinear", align_corners=False)


class Renormalizer(nn.Module):
    """x0 [N, C, H, W] -> the same with this mean and deviation in each channel of a sample; unbiased, as the reference's."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(torch.tensor(mean)[:, None, None]), nn.Buffer(torch.tensor(std)[:, None, None])

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        pixels = x0.shape[2] * x0.shape[3]
        centred = x0 - x0.mean(dim=(2, 3), keepdim=True)
        # Written out: of a deviation, runtimes have several forms.
        deviation = (centred.square().sum(dim=(2, 3), keepdim=True) / (pixels - 1)).sqrt()
        return centred / deviation * self.std + self.mean
