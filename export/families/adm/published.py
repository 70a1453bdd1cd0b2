"""The published models: what their weights cannot tell, by the shapes that they have.

Sources: the flags that the READMEs of openai/guided-diffusion (22e0df8) and openai/improved-diffusion (1bc7bbb) give for
each file, and the defaults of their script_util.py where a flag is not given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import ArgumentError, did_you_mean
from export.models.openai.classifier import ATTENTION, ClassifierSpec
from export.models.openai.spec import OpenAIUNetSpec


@dataclass(frozen=True)
class Published:
    """One configuration.

    size, small      side of the images, and of those that an upsampler takes
    noise_schedule   "linear" (in beta) or "cosine";  T: its timesteps
    rescale          the network is given t 1000 / T
    new_order        attention whose q, k and v lie apart, with the heads inside each
    """

    unet: OpenAIUNetSpec
    size: int
    noise_schedule: str
    T: int
    small: int | None = None
    rescale: bool = False
    new_order: bool = False

    @property
    def shape(self) -> OpenAIUNetSpec:
        """What weights tell of the UNet."""
        return without_heads(self.unet)


def without_heads(unet: OpenAIUNetSpec) -> OpenAIUNetSpec:
    """A UNet as far as weights tell it; which of the attention factors have a level is all that they say of those."""
    factors = tuple(sorted(f for f in unet.attention_factors if f < 1 << len(unet.channel_mult)))
    return replace(unet, num_heads=None, num_head_channels=None, attention_factors=factors)


def _guided(
    channels: int, mult: tuple[float, ...], blocks: int, factors: tuple[int, ...], heads: int | None = None,
    classes: int | None = 1000, inputs: int = 3,
) -> OpenAIUNetSpec:  # fmt: skip
    """A UNet of guided-diffusion; its heads have 64 channels each where their number is not given."""
    stem = int(mult[0] * channels)
    return OpenAIUNetSpec(
        inputs, 6, channels, mult, blocks, factors, heads, None if heads else 64, scale_shift=True, resample_blocks=True,
        stem_channels=None if stem == channels else stem, classes=classes, learned_variance=True,
    )  # fmt: skip


def _improved(
    channels: int, mult: tuple[float, ...], blocks: int, factors: tuple[int, ...], heads: int = 4,
    classes: int | None = None, inputs: int = 3, scale_shift: bool = True,
) -> OpenAIUNetSpec:  # fmt: skip
    """A UNet of improved-diffusion."""
    return OpenAIUNetSpec(
        inputs, 6, channels, mult, blocks, factors, heads, None, scale_shift=scale_shift, classes=classes,
        learned_variance=True,
    )  # fmt: skip


_MULT_64, _MULT_128, _MULT_256 = (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 2, 2, 4, 4)
_UNCONDITIONAL = Published(_guided(256, _MULT_256, 2, (8, 16, 32), classes=None), 256, "linear", 1000)
# By the names of their files. The last five are improved-diffusion's; its L_vlb models have the shapes of its L_hybrid ones.
PUBLISHED: dict[str, Published] = {
    "64x64_diffusion": Published(_guided(192, _MULT_64, 3, (2, 4, 8)), 64, "cosine", 1000, new_order=True),
    "128x128_diffusion": Published(_guided(256, _MULT_128, 2, (4, 8, 16), 4), 128, "linear", 1000),
    "256x256_diffusion": Published(_guided(256, _MULT_256, 2, (8, 16, 32)), 256, "linear", 1000),
    "256x256_diffusion_uncond": _UNCONDITIONAL,
    "512x512_diffusion": Published(_guided(256, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64)), 512, "linear", 1000),
    "64_256_upsampler": Published(_guided(192, _MULT_256, 2, (8, 16, 32), 4, inputs=6), 256, "linear", 1000, small=64),
    "128_512_upsampler": Published(_guided(192, _MULT_256, 2, (16, 32), inputs=6), 512, "linear", 1000, small=128),
    "lsun_bedroom": _UNCONDITIONAL,
    "lsun_cat": _UNCONDITIONAL,
    "lsun_horse": _UNCONDITIONAL,
    "imagenet64_uncond": Published(_improved(128, _MULT_64, 3, (4, 8)), 64, "cosine", 4000, rescale=True),
    "imagenet64_cond": Published(_improved(192, _MULT_64, 3, (4, 8), classes=1000), 64, "cosine", 4000),
    "cifar10_uncond": Published(_improved(128, (1, 2, 2, 2), 3, (2, 4)), 32, "cosine", 4000, rescale=True),
    "upsample_cond": Published(
        _improved(192, _MULT_256, 2, (16, 32), classes=1000, inputs=6), 256, "linear", 4000, small=64
    ),
    "lsun_uncond": Published(_improved(128, _MULT_256, 2, (16,), 1, scale_shift=False), 256, "linear", 1000),
}


@dataclass(frozen=True)
class PublishedClassifier:
    """One configuration of a classifier; all have heads of 64 channels, and the schedule of the model that they guide."""

    spec: ClassifierSpec
    noise_schedule: str
    T: int = 1000

    @property
    def shape(self) -> ClassifierSpec:
        """What weights tell of it."""
        return replace(self.spec, unet=without_heads(self.spec.unet))


def _classifier(side: int, mult: tuple[float, ...], blocks: int, noise_schedule: str = "linear") -> PublishedClassifier:
    stem = int(mult[0] * 128)
    unet = OpenAIUNetSpec(
        3, 1000, 128, mult, blocks, tuple(side // at for at in (32, 16, 8)), None, 64, scale_shift=True,
        resample_blocks=True, stem_channels=None if stem == 128 else stem,
    )  # fmt: skip
    return PublishedClassifier(ClassifierSpec(unet, ATTENTION, (side, side)), noise_schedule)


CLASSIFIERS: dict[str, PublishedClassifier] = {
    "64x64_classifier": _classifier(64, _MULT_64, 4, "cosine"),
    "128x128_classifier": _classifier(128, _MULT_128, 2),
    "256x256_classifier": _classifier(256, _MULT_256, 2),
    "512x512_classifier": _classifier(512, (0.5, 1, 1, 2, 2, 4, 4), 2),
}
# What the README samples each model with.
SCALES = {
    "64x64_diffusion": 1.0, "128x128_diffusion": 0.5, "256x256_diffusion": 1.0, "256x256_diffusion_uncond": 10.0,
    "512x512_diffusion": 4.0,
}  # fmt: skip


def published(name: str) -> Published:
    """A published model; ArgumentError with the nearest name otherwise."""
    if name not in PUBLISHED:
        raise ArgumentError(
            f"--preset: found {name!r}, expected one of {', '.join(PUBLISHED)}.{did_you_mean(name, PUBLISHED)}"
        )
    return PUBLISHED[name]


def identify(shape: OpenAIUNetSpec) -> str | None:
    """The published model that has these shapes; of several that differ in nothing else the first."""
    return next((name for name, known in PUBLISHED.items() if known.shape == shape), None)
