"""Architectures of latent diffusion models, as their configuration says them: one dataclass a network.

Names are those of the CompVis configuration where it has one; nothing here is read from weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.models.openai.spec import OpenAIUNetSpec


@dataclass(frozen=True)
class FirstStageSpec:
    """The autoencoder (`first_stage_config`): KL, or VQ with a codebook.

    attn_resolutions  map sizes with attention, counted from `resolution`, whatever the image
    attention         False: `attn_type: none`, which leaves out the middle's, too
    embed_dim         channels of the latent; z_channels is what the encoder's own convolutions end in
    codes             entries of the codebook (`n_embed`); None: KL
    """

    in_channels: int
    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int
    embed_dim: int
    codes: int | None
    attention: bool = True

    @property
    def factor(self) -> int:
        """Pixels of the image to one of the latent."""
        return 1 << (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class ClassConditionerSpec:
    """`ClassEmbedder`: one token a label of 0 .. classes - 1; null is the label that stands for none, where there is one."""

    classes: int
    width: int
    null: int | None = None


@dataclass(frozen=True)
class TokenConditionerSpec:
    """`BERTEmbedder`: a transformer encoder over ids of 0 .. vocabulary - 1, [n, length] -> [n, length, width]."""

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int = 8
    head_width: int = 64


@dataclass(frozen=True)
class RescalerConditionerSpec:
    """`SpatialRescaler`: a label map, one-hot over `classes`, halved bilinearly `stages` times, then a 1 x 1 convolution to
    `channels` (None: no convolution)."""

    classes: int
    stages: int
    channels: int | None


@dataclass(frozen=True)
class ImageConditionerSpec:
    """The low-resolution image itself, concatenated (`torch.nn.Identity`)."""

    channels: int


@dataclass(frozen=True)
class InpaintConditionerSpec:
    """`__is_first_stage__` with a mask: E(masked image) and the mask, concatenated; `stage` is the second copy's."""

    stage: FirstStageSpec


Conditioner = (
    ClassConditionerSpec | TokenConditionerSpec | RescalerConditionerSpec | ImageConditionerSpec | InpaintConditionerSpec
)


@dataclass(frozen=True)
class LatentSpec:
    """A whole model: latent is the state's [C, H, W], prediction "eps", "x0" or "v", scale the latent's (`scale_factor`)."""

    unet: OpenAIUNetSpec
    stage: FirstStageSpec
    conditioner: Conditioner | None
    latent: tuple[int, int, int]
    prediction: str
    scale: float

    @property
    def image(self) -> tuple[int, int, int]:
        """[C, H, W] of an image."""
        _, height, width = self.latent
        return self.stage.out_channels, height * self.stage.factor, width * self.stage.factor
