"""The graphs of a DiffuseVAE model: signatures, and in which precision each may be computed."""

from __future__ import annotations

import torch

from export.graphs.roles import Role, tensor
from export.models.graphs import ConditionedDenoiser, DecoderGraph, Denoiser, EncoderGraph, TimestepTable
from export.models.unet import UNet, sinusoid
from export.models.vae import VAE

# What the table rounds off would enter every step; int8 is for the one network that runs in every step.
TABLE = {"bf16": "f32", "int8": "f32", "fp16": "f32"}
STAGE = {"int8": "bf16"}


def roles(unet: UNet, vae: VAE | None, T: int, prediction: str = "eps") -> dict[str, Role]:
    """The graphs of a bundle by name, in the order in which sampling uses them."""
    spec = unet.spec
    image = ("batch", spec.out_channels, spec.image_size, spec.image_size)
    result: list[Role] = []
    if vae is not None:
        z = tensor("z", ("batch", vae.spec.z_dim))
        moments = tuple(tensor(name, z.shape) for name in ("mu", "logvar"))
        pixels, unit = tensor("image", image, range=(0.0, 1.0)), tensor("image", image, range=(-1.0, 1.0))
        result.append(Role("vae_encoder", EncoderGraph(vae), (pixels,), moments, compute=STAGE))
        result.append(Role("vae_decoder", DecoderGraph(vae), (z,), (unit,), compute=STAGE))
    by_z = (tensor("z", ("batch", spec.z_dim)),) if spec.z_dim is not None else ()
    rows = ("steps", "batch", unet.row_width) if by_z else ("steps", unet.row_width)
    steps = tensor("timesteps", ("steps",), "int64", (0.0, T - 1.0))
    sinusoids = sinusoid(torch.arange(T), spec.model_channels, spec.layout)
    table = TimestepTable(sinusoids, unet.time_mlp, [stage.res.emb for stage in unet.stages()], unet.z_mlp)
    result.append(Role("timestep_table", table, (steps, *by_z), (tensor("rows", rows),), compute=TABLE))
    row = tensor("row", ("batch" if by_z else 1, unet.row_width))
    cond = (tensor("cond", image, range=(-1.0, 1.0)),) if spec.conditional else ()
    module = ConditionedDenoiser(unet) if cond else Denoiser(unet)
    result.append(Role("denoiser", module, (tensor("x", image), *cond, row), (tensor(prediction, image),)))
    return {role.name: role for role in result}
