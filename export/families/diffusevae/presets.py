"""The reference's published configurations: what their weights cannot tell.

Sources: `main/configs/dataset/*/{train,test}.yaml` and `scripts/{train,test}_ddpm.sh` of the reference. The yaml defaults
say one head for some data sets, but every published *conditional* DiffuseVAE is trained and sampled with `n_heads=8` and
every published *unconditional* baseline with `n_heads=1` (scripts): the scripts are followed. Where no unconditional
model is published, `heads_unconditional` is None and the build asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ArgumentError, did_you_mean
from export.models.vae import VAESpec

_VAE_32 = VAESpec(
    32,
    "32x7,32d2,32t16,16x4,16d2,16t8,8x4,8d2,8t4,4x3,4d4,4t1,1x3",
    "1x1,1u4,1t4,4x2,4u2,4t8,8x3,8u2,8t16,16x7,16u2,16t32,32x15",
    "32:64,16:128,8:256,4:256,1:512",
    "32:64,16:128,8:256,4:256,1:512",
)
_VAE_64 = VAESpec(
    64,
    "64x7,64d2,64t32,32x4,32d2,32t16,16x7,16d2,16t8,8x3,8d2,8t4,4x3,4d4,4t1,1x2",
    "1x1,1u4,1t4,4x2,4u2,4t8,8x3,8u2,8t16,16x7,16u2,16t32,32x8,32u2,32t64,64x10",
    "64:64,32:128,16:256,8:256,4:256,1:512",
    "64:64,32:128,16:256,8:256,4:256,1:512",
)
_VAE_128 = VAESpec(
    128,
    "128x1,128d2,128t64,64x3,64d2,64t32,32x3,32d2,32t16,16x7,16d2,16t8,8x3,8d2,8t4,4x3,4d4,4t1,1x2",
    "1x1,1u4,1t4,4x2,4u2,4t8,8x2,8u2,8t16,16x6,16u2,16t32,32x2,32u2,32t64,64x2,64u2,64t128,128x1",
    "128:64,64:64,32:128,16:128,8:256,4:512,1:1024",
    "128:64,64:64,32:128,16:128,8:256,4:512,1:1024",
)
_VAE_256 = VAESpec(
    256,
    "256x3,256d2,256t128,128x3,128d2,128t64,64x5,64d2,64t32,32x7,32d2,32t16,16x9,16d2,16t8,8x7,8d2,8t4,4x5,4d4,4t1,1x2",
    "1x2,1u4,1t4,4x4,4u2,4t8,8x6,8u2,8t16,16x8,16u2,16t32,32x5,32u2,32t64,64x4,64u2,64t128,128x2,128u2,128t256,256x2",
    "256:64,128:64,64:64,32:128,16:128,8:256,4:512,1:1024",
    "256:64,128:64,64:64,32:128,16:128,8:256,4:512,1:1024",
)


@dataclass(frozen=True)
class Preset:
    """One published configuration.

    Attributes:
        widths: the (base channels, residual blocks per level) published; the first is the configuration's own.
        attention_factors: downsampling factors at which the guided-diffusion layout has attention. The DDIM layout
            reads the same numbers as resolutions.
        heads_conditional, heads_unconditional: attention heads; None where no such model is published.
        variance: of the evaluation configuration (`test.yaml`).
    """

    image_size: int
    channel_mult: tuple[int, ...]
    vae: VAESpec
    variance: str
    heads_conditional: int = 8
    heads_unconditional: int | None = None
    widths: tuple[tuple[int, int], ...] = ((128, 2),)
    attention_factors: tuple[int, ...] = (16,)
    beta_1: float = 1e-4
    beta_T: float = 0.02
    T: int = 1000

    def heads(self, conditional: bool) -> int | None:
        """The heads of the conditional or the unconditional model."""
        return self.heads_conditional if conditional else self.heads_unconditional

    def attention_levels(self, layout: str) -> tuple[int, ...]:
        """Levels with attention: factor 2**level in one layout, resolution in the other."""
        levels = range(len(self.channel_mult))
        if layout == "openai":
            return tuple(level for level in levels if 2**level in self.attention_factors)
        return tuple(level for level in levels if self.image_size >> level in self.attention_factors)


PRESETS: dict[str, Preset] = {
    # (160, 3) is the larger model of test_ddpm.sh, the paper's best on CIFAR-10.
    "cifar10": Preset(32, (1, 2, 2, 2), _VAE_32, "fixedlarge", heads_unconditional=1, widths=((128, 2), (160, 3))),
    "celeba64": Preset(64, (1, 2, 2, 2, 4), _VAE_64, "fixedlarge", heads_unconditional=1),
    "celebamaskhq128": Preset(128, (1, 2, 2, 3, 4), _VAE_128, "fixedsmall", heads_unconditional=1),
    "celebahq256": Preset(256, (1, 1, 2, 2, 4, 4), _VAE_256, "fixedsmall"),
    "ffhq128": Preset(128, (1, 1, 2, 3, 4), _VAE_128, "fixedlarge"),
    # The reference has no configuration for FFHQ at 256: this is its nearest, that of AFHQ and CelebA-HQ at 256.
    "ffhq256": Preset(256, (1, 1, 2, 2, 4, 4), _VAE_256, "fixedsmall"),
    "afhq256": Preset(256, (1, 1, 2, 2, 4, 4), _VAE_256, "fixedsmall"),
}


def preset(name: str) -> Preset:
    """The preset of that name; ArgumentError with the nearest names otherwise."""
    if name not in PRESETS:
        raise ArgumentError(f"--preset: found {name!r}, expected one of {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
