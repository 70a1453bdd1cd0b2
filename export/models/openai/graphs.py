"""The UNet as graphs of a bundle, and what is made for it before the loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

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
        output = self.unet.denoise(x, row, keys_values, cond)
        if not self.unet.spec.learned_variance:
            return output
        prediction, variance = output.chunk(2, dim=1)
        return prediction, variance


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
