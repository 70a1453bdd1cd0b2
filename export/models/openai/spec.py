"""The architecture of a UNet of improved-diffusion, guided-diffusion or latent diffusion. Names are those of their code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OpenAIUNetSpec:
    """A denoiser.

    in_channels       those of the state, and of what is concatenated to it
    out_channels      those of the state, twice as many with learned_variance
    channel_mult      width of each level in units of model_channels; a product that is no whole number is rounded down
    attention_factors downsampling factors at which blocks attend (`attention_resolutions`); the middle always does
    num_heads         heads at every level; None where num_head_channels, the width of one head, decides
    context_dim       width of the tokens that cross-attention reads; None: plain attention blocks, no transformer
    depth             transformer blocks in each (`transformer_depth`)
    scale_shift       the embedding scales and shifts the second norm instead of being added before it
    resample_blocks   resampling by residual blocks instead of convolutions (`resblock_updown`)
    stem_channels     what the first convolution gives; None: model_channels
    classes           labels of 0 .. classes - 1, embedded and added to the time embedding; None: no labels
    learned_variance  the second half of the output says how much noise each element gets (`learn_sigma`)
    map_channels      channels of the label map that scales and shifts the norms from the middle on; None: there is none
    """

    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_factors: tuple[int, ...]
    num_heads: int | None
    num_head_channels: int | None
    context_dim: int | None = None
    depth: int = 1
    scale_shift: bool = False
    resample_blocks: bool = False
    stem_channels: int | None = None
    classes: int | None = None
    learned_variance: bool = False
    map_channels: int | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def stem(self) -> int:
        """Channels behind the first convolution."""
        return self.model_channels if self.stem_channels is None else self.stem_channels

    @property
    def channels(self) -> int:
        """Channels of the state."""
        return self.out_channels // 2 if self.learned_variance else self.out_channels

    @property
    def multiple(self) -> int:
        """What height and width of the state are multiples of."""
        return 1 << (len(self.channel_mult) - 1)

    def heads(self, channels: int) -> int:
        """Heads of an attention over maps of so many channels."""
        if self.num_heads is not None:
            return self.num_heads
        assert self.num_head_channels is not None, "a spec says the number of heads or the width of one"
        return channels // self.num_head_channels
