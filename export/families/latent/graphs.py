"""The graphs of a latent diffusion model: signatures, and in which precision each may be computed.

    first_stage_encoder  image -> latent                     first_stage_decoder  latent -> image
    conditioner          label or tokens -> context; segmentation, or image and mask -> cond
    keys_values          context -> keys_values              timestep_table       timesteps -> rows
    denoiser             x, (cond), (keys_values), row -> the prediction
    codebook             latent -> codes                     only of VQ: the nearest code at every position
    composite            decoded, image, mask -> composite   only of inpainting

The image of a super-resolution model is its cond as it is: such a model has no conditioner.
"""

from __future__ import annotations

import torch
from torch import nn

from engine.bundle.tensors import TensorSpec
from export.graphs.roles import Role, tensor
from export.models.graphs import TimestepTable
from export.models.latent.first_stage import FirstStage
from export.models.latent.graphs import Codebook, Composite, FirstStageDecoder, FirstStageEncoder, KeysValues
from export.models.latent.spec import (
    ClassConditionerSpec,
    ImageConditionerSpec,
    InpaintConditionerSpec,
    LatentSpec,
    RescalerConditionerSpec,
    TokenConditionerSpec,
)
from export.models.openai.graphs import OpenAIDenoiser
from export.models.openai.unet import OpenAIUNet
from export.models.unet import sinusoid

# What the table rounds off would enter every step; a codebook's search and what only looks up are for float32.
EXACT = {"bf16": "f32", "int8": "f32", "fp16": "f32"}
ONCE = {"int8": "bf16"}  # int8 is for the one network that runs in every step


def roles(
    spec: LatentSpec, unet: OpenAIUNet, stage: FirstStage, conditioner: nn.Module | None, T: int
) -> dict[str, Role]:
    """The graphs of a bundle by name, in the order in which sampling uses them."""
    image = tensor("image", ("batch", *spec.image), range=(-1.0, 1.0))
    latent = tensor("latent", ("batch", *spec.latent))
    encoder, decoder = FirstStageEncoder(stage, spec.scale), FirstStageDecoder(stage, spec.scale)
    result = [Role("first_stage_encoder", encoder, (image,), (latent,), compute=ONCE)]
    given = _condition(spec)
    if conditioner is not None:
        looks_up = isinstance(spec.conditioner, ClassConditionerSpec | RescalerConditionerSpec)
        compute = EXACT if looks_up else ONCE
        result.append(Role("conditioner", conditioner, conditions(spec), given, compute=compute))
    if unet.context_width:
        (context,), given = given, (tensor("keys_values", (*given[0].shape[:2], unet.context_width)),)
        result.append(Role("keys_values", KeysValues(unet), (context,), given, compute=ONCE))
    steps = tensor("timesteps", ("steps",), "int64", (0.0, T - 1.0))
    row = tensor("row", (1, unet.row_width))
    sinusoids = sinusoid(torch.arange(T), spec.unet.model_channels, "openai")
    table = TimestepTable(sinusoids, unet.time_embed, unet.projections)
    rows = tensor("rows", ("steps", unet.row_width))
    result.append(Role("timestep_table", table, (steps,), (rows,), compute=EXACT))
    inputs = (tensor("x", latent.shape), *given, row)
    result.append(Role("denoiser", OpenAIDenoiser(unet), inputs, (tensor(spec.prediction, latent.shape),)))
    if stage.quantize is not None:
        codes = tensor("codes", latent.shape)
        codebook = Codebook(stage.quantize, spec.scale, spec.latent[1] * spec.latent[2])
        result.append(Role("codebook", codebook, (latent,), (codes,), compute=EXACT))
    result.append(Role("first_stage_decoder", decoder, (latent,), (image,), compute=ONCE))
    if isinstance(spec.conditioner, InpaintConditionerSpec):
        inputs = (tensor("decoded", image.shape), *conditions(spec))
        composite = tensor("composite", image.shape, range=image.range)
        result.append(Role("composite", Composite(), inputs, (composite,), compute=EXACT))
    return {role.name: role for role in result}


def conditions(spec: LatentSpec) -> tuple[TensorSpec, ...]:
    """What a request says of a condition: the inputs of the conditioner, or what is concatenated as it is."""
    of = spec.conditioner
    height, width = spec.image[1:]
    if isinstance(of, ClassConditionerSpec):
        return (tensor("label", ("batch",), "int64", (0.0, of.classes - 1.0)),)
    if isinstance(of, TokenConditionerSpec):
        return (tensor("tokens", ("batch", of.length), "int64", (0.0, of.vocabulary - 1.0)),)
    if isinstance(of, RescalerConditionerSpec):
        size = tuple(side << of.stages for side in spec.latent[1:])
        return (tensor("segmentation", ("batch", *size), "int64", (0.0, of.classes - 1.0)),)
    if isinstance(of, InpaintConditionerSpec):
        mask = tensor("mask", ("batch", 1, height, width), range=(0.0, 1.0))
        return (tensor("image", ("batch", *spec.image), range=(-1.0, 1.0)), mask)
    return _condition(spec)


def _condition(spec: LatentSpec) -> tuple[TensorSpec, ...]:
    """What the conditioner gives, or what is concatenated as it is; nothing without a condition."""
    of = spec.conditioner
    if of is None:
        return ()
    if isinstance(of, ClassConditionerSpec):
        return (tensor("context", ("batch", 1, of.width)),)
    if isinstance(of, TokenConditionerSpec):
        return (tensor("context", ("batch", of.length, of.width)),)
    channels = spec.unet.in_channels - spec.latent[0]
    limits = (-1.0, 1.0) if isinstance(of, ImageConditionerSpec) else None
    return (tensor("cond", ("batch", channels, *spec.latent[1:]), range=limits),)
