"""Which tensors does the served model take and give? One list, read off a manifest, for configuration and server alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bundle.manifest import Model

NUMPY = {
    "TYPE_INT64": np.dtype(np.int64),
    "TYPE_INT32": np.dtype(np.int32),
    "TYPE_FP32": np.dtype(np.float32),
    "TYPE_UINT8": np.dtype(np.uint8),
    "TYPE_STRING": np.dtype(np.object_),
}


@dataclass(frozen=True)
class Tensor:
    """One input or output of a sample; the batch dimension comes before `dims`."""

    name: str
    kind: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True


# The setting of a sample, named as for `Sampler.sample`.
SETTING = (
    Tensor("steps", "TYPE_INT32"),
    Tensor("method", "TYPE_STRING"),
    Tensor("spacing", "TYPE_STRING"),
    Tensor("eta", "TYPE_FP32"),
    Tensor("temperature", "TYPE_FP32"),
)
# These need a VAE.
CONDITIONAL_SETTING = (Tensor("t_start", "TYPE_INT32"), Tensor("guidance", "TYPE_FP32"))


def inputs_of(model: Model) -> tuple[Tensor, ...]:
    """Every input of a bundle's model; all but the seed are optional."""
    seed = Tensor("seed", "TYPE_INT64", optional=False)
    latent = (Tensor("z", "TYPE_FP32", (model.z_dim,)),) if model.z_dim is not None else ()
    return (seed, *latent, *setting_of(model))


def setting_of(model: Model) -> tuple[Tensor, ...]:
    """The inputs that are options of `Sampler.sample`."""
    return (*SETTING, *CONDITIONAL_SETTING) if model.conditional else SETTING


def outputs_of(model: Model) -> tuple[Tensor, ...]:
    """Every output of a bundle's model."""
    pixels = (model.image_size, model.image_size, model.channels)
    image = Tensor("image", "TYPE_UINT8", pixels, optional=False)
    if model.z_dim is None:
        return (image,)
    return (
        image,
        Tensor("recon", "TYPE_UINT8", pixels, optional=False),
        Tensor("z", "TYPE_FP32", (model.z_dim,), optional=False),
    )
