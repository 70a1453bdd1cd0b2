"""The networks of latent diffusion as graphs of a bundle; a conditioner is one as it is.

The scale of the latent is inside the encoder, the codebook and the decoder: all that they pass on is scaled, as what the
loop carries. The codebook is a graph of its own, so that the search alone asks for float32 and the decoder for nothing.
"""

from __future__ import annotations

import torch
from torch import nn

from export.models.latent.first_stage import FirstStage, Quantiser
from export.models.openai.unet import OpenAIUNet


class FirstStageEncoder(nn.Module):
    """image [N, C, H, W] in [-1, 1] -> latent [N, c, h, w], scaled: the mean of KL, VQ before quantisation."""

    def __init__(self, stage: FirstStage, scale: float) -> None:
        super().__init__()
        self.encoder, self.quant_conv = stage.encoder, stage.quant_conv
        self.channels, self.scale = stage.spec.embed_dim, scale

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        moments = self.quant_conv(self.encoder(image))
        return moments[:, : self.channels] * self.scale


class FirstStageDecoder(nn.Module):
    """latent [N, c, h, w], scaled -> image [N, C, H, W], nominally in [-1, 1] and not clamped; VQ's latent is codes."""

    def __init__(self, stage: FirstStage, scale: float) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder, self.scale = stage.post_quant_conv, stage.decoder, scale

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.decoder(self.post_quant_conv(latent / self.scale))
        return image


class Codebook(nn.Module):
    """latent [N, c, h, w], scaled -> the nearest code at every position, scaled as the latent is.

    pixels: of the latent that the model was made for; the search takes memory in proportion in others.
    """

    def __init__(self, quantize: Quantiser, scale: float, pixels: int | None = None) -> None:
        super().__init__()
        self.quantize, self.scale, self.pixels = quantize, scale, pixels

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = self.quantize(latent / self.scale, self.pixels) * self.scale
        return codes


class KeysValues(nn.Module):
    """context [N, L, width] -> keys_values [N, L, K] of every transformer block: their projections as one matrix."""

    def __init__(self, unet: OpenAIUNet) -> None:
        super().__init__()
        weight = torch.cat([layer.weight for layer in unet.context_projections])
        self.projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.projection.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        keys_values: torch.Tensor = self.projection(context)
        return keys_values


class Composite(nn.Module):
    """decoded, image [N, C, H, W], mask [N, 1, H, W] -> the image, and what was decoded where the mask is 1."""

    def forward(self, decoded: torch.Tensor, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask * decoded + (1 - mask) * image
