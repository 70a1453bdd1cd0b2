"""The graphs of a guided diffusion model: signatures, and in which precision each may be computed.

    enlarger         low_resolution -> cond          only of upsamplers
    label_embedding  label -> embedding              only of models with classes
    timestep_table   timesteps, (z: the embedding) -> rows
    denoiser         x, (cond), row -> eps, or what else it predicts, and range, how much noise each element gets, if learned
"""

from __future__ import annotations

import torch
from torch import nn

from engine.bundle.tensors import TensorSpec
from export.families.adm.architecture import Architecture
from export.graphs.roles import Role, tensor
from export.models.graphs import TimestepTable
from export.models.openai.graphs import Enlarger, LabelEmbedding, OpenAIDenoiser
from export.models.openai.unet import OpenAIUNet
from export.models.unet import sinusoid

# What the table rounds off would enter every step; what only looks up or enlarges is for float32.
EXACT = {"bf16": "f32", "int8": "f32", "fp16": "f32"}
RESCALED = 1000.0  # what the network takes for the number of timesteps, where it is given rescaled ones


def times_of(of: Architecture) -> torch.Tensor:
    """What the networks are given for each of the T timesteps, [T]."""
    times = torch.arange(of.schedule.T)
    return times.float() * (RESCALED / of.schedule.T) if of.rescale else times


def roles(of: Architecture, unet: OpenAIUNet) -> dict[str, Role]:
    """The graphs of a bundle by name, in the order in which sampling uses them."""
    spec, T = of.unet, of.schedule.T
    state = ("batch", spec.channels, *of.size)
    cond, width = tensor("cond", state), 4 * spec.model_channels
    by_label: tuple[TensorSpec, ...] = ()
    result = []
    if of.small is not None:
        low = tensor("low_resolution", ("batch", spec.channels, *of.small), range=(-1.0, 1.0))
        result.append(Role("enlarger", Enlarger(*of.size), (low,), (cond,), compute=EXACT))
    if unet.label_emb is not None:
        label = tensor("label", ("batch",), "int64", (0.0, unet.label_emb.num_embeddings - 1.0))
        embedding, by_label = tensor("embedding", ("batch", width)), (tensor("z", ("batch", width)),)
        result.append(Role("label_embedding", LabelEmbedding(unet.label_emb), (label,), (embedding,), compute=EXACT))
    steps = tensor("timesteps", ("steps",), "int64", (0.0, T - 1.0))
    added = nn.Identity() if by_label else None
    table = TimestepTable(sinusoid(times_of(of), spec.model_channels, "openai"), unet.time_embed, unet.projections, added)
    rows = ("steps", "batch", unet.row_width) if by_label else ("steps", unet.row_width)
    result.append(Role("timestep_table", table, (steps, *by_label), (tensor("rows", rows),), compute=EXACT))
    row = tensor("row", ("batch" if by_label else 1, unet.row_width))
    conds = () if of.small is None else (cond,)
    gives = (tensor(of.prediction, state), *((tensor("range", state),) if spec.learned_variance else ()))
    result.append(Role("denoiser", OpenAIDenoiser(unet), (tensor("x", state), *conds, row), gives))
    return {role.name: role for role in result}
