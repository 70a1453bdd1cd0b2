"""The products that may run in int8: those whose operand a norm or a GEGLU makes, which quantise in passing.

What stands behind neither stays in bf16: skips, resampling, the projection out of a transformer, and the products behind an
attention. The engine could multiply these in int8, but the ranges that chains show do not hold elsewhere: the denoiser of
tests/golden_ldm/inpaint_concat is off by 0.09 on random inputs with them and by 0.05 without. Norms, GEGLU and softmax are
computed in float32 in any case.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from export.graphs.roles import Role
from export.models.graphs import ConditionedDenoiser, Denoiser
from export.models.ncsnpp import Generator, GeneratorStep
from export.models.ncsnpp import ResBlock as GeneratorBlock
from export.models.openai.graphs import OpenAIDenoiser
from export.models.openai.unet import AttentionBlock, OpenAIUNet, ResBlock, SpadeBlock, SpatialTransformer, TransformerBlock
from export.models.unet import UNet

Product = nn.Conv1d | nn.Conv2d | nn.Linear
Products = tuple[Product, ...]  # over one operand, multiplied by one operation


def unet_of(role: Role) -> UNet | OpenAIUNet | Generator:
    """The network behind a graph."""
    if isinstance(role.module, GeneratorStep):
        return role.module.generator
    assert isinstance(role.module, Denoiser | ConditionedDenoiser | OpenAIDenoiser), "int8 is for denoisers"
    return role.module.unet


def tokens_of(role: Role) -> int:
    """Tokens whose keys and values a denoiser takes; 0 without cross-attention."""
    return next((int(spec.shape[1]) for spec in role.inputs if len(spec.shape) == 3), 0)


def eligible(role: Role) -> dict[str, Products]:
    """What may run in int8, in the order of running, by the name of the program's operation, which is the layer's own; the
    queries, keys and values of a self-attention are one operation, and so share a scale and a choice.

    Of residual blocks the convolutions, but for those that read a filtered map; in latent and guided diffusion also the
    products right behind the norms and the GEGLUs of attention and transformers.
    """
    unet = unet_of(role)
    if isinstance(unet, UNet):
        names = {module: name for name, module in unet.named_modules()}
        return {names[conv]: (conv,) for conv in unet.residual_convolutions()}
    if isinstance(unet, Generator):
        return {
            f"{name}.{inside}": (getattr(block, inside),)
            for name, block in unet.named_modules() if isinstance(block, GeneratorBlock)
            for inside in (("Conv_1",) if block.resample != 1 else ("Conv_0", "Conv_1"))
        }  # fmt: skip
    several = tokens_of(role) > 1
    return {
        f"{name}.{inside}": products
        for name, module in unet.named_modules()
        for inside, products in _products(module, several)
    }


def smoothable(role: Role) -> frozenset[str]:
    """Of these, whose operand's channels can each be divided by the product before, at no cost: x of x gelu(y) is linear."""
    blocks = (name for name, module in unet_of(role).named_modules() if isinstance(module, TransformerBlock))
    return frozenset(f"{name}.ff.net.2" for name in blocks)


def _products(module: nn.Module, several: bool) -> Iterator[tuple[str, Products]]:
    """Of one block. several: tokens; to a single one, queries are not computed."""
    if isinstance(module, ResBlock):
        before = 1 if isinstance(module, SpadeBlock) else 2  # layers in front of the convolution, of the second one more
        first, last = module.in_layers[before], module.out_layers[before + 1]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        if module.resample == 1:
            yield f"in_layers.{before}", (first,)
        yield f"out_layers.{before + 1}", (last,)
    elif isinstance(module, AttentionBlock):
        yield "qkv", (module.qkv,)
    elif isinstance(module, SpatialTransformer):
        yield "proj_in", (module.proj_in,)
    elif isinstance(module, TransformerBlock):
        own = module.attn1
        yield "attn1.qkv", (own.to_q, own.to_k, own.to_v)
        if several:
            yield "attn2.to_q", (module.attn2.to_q,)
        yield "ff.net.0.proj", (_linear(module.ff.net[0].proj),)
        yield "ff.net.2", (_linear(module.ff.net[2]),)


def _linear(layer: nn.Module | torch.Tensor) -> nn.Linear:
    """A layer of an nn.Sequential, which forgets what it holds."""
    assert isinstance(layer, nn.Linear)
    return layer
