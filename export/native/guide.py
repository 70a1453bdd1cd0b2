"""Guides as programs: the classifiers of export/models/openai/classifier.py forward, and back to the image."""

from __future__ import annotations

import math

from torch import nn

from export.graphs.roles import Role
from export.guides import Guide
from export.models.openai.classifier import ADAPTIVE, ATTENTION, AttentionPool, Classifier
from export.native.gradient import GradientAssembler
from export.native.latent import Blocks, group_norm, offsets_of, pointwise
from export.native.program import MAX_GRADIENT_PIXELS, MAX_SIDE, Assembled, Value


def guide_unfit(role: Role) -> str | None:
    """What a guide has that cannot be lowered, or None."""
    assert isinstance(role.module, Guide)
    (classifier,) = role.module.classifier
    if not isinstance(classifier, Classifier):
        return f"a guide by a {type(classifier).__name__}, expected a classifier of guided-diffusion"
    return classifier_unfit(classifier, role)


def classifier_unfit(classifier: Classifier, role: Role) -> str | None:
    """What a classifier has that cannot be lowered for images of this size, or None."""
    height, width = (int(side) for side in role.inputs[0].shape[2:])
    if classifier.pool not in (ADAPTIVE, ATTENTION):
        return f"a classifier with a pool of kind {classifier.pool}, expected {ADAPTIVE} or {ATTENTION}"
    if max(height, width) > MAX_SIDE:
        return f"images of {height} x {width}, expected sides of at most {MAX_SIDE}"
    spec = classifier.spec
    last = 1 << (len(spec.channel_mult) - 1)
    factor = min([last, *(factor for factor in spec.attention_factors if factor < last)])
    pixels = height // factor * (width // factor)
    if pixels > MAX_GRADIENT_PIXELS:
        return f"attention over {pixels} pixels, expected at most {MAX_GRADIENT_PIXELS} in a gradient"
    return None


def lower_guide(role: Role) -> Assembled:
    """x, label, row -> g, entropy."""
    assert isinstance(role.module, Guide)
    (classifier,) = role.module.classifier
    assert isinstance(classifier, Classifier)
    return lower_classifier(classifier, role)


def lower_classifier(classifier: Classifier, role: Role) -> Assembled:
    """A classifier's guide with the signature of a role, whatever its module is."""
    program = GradientAssembler(role.name, "bf16")
    x, label, row = role.inputs
    g, entropy = role.outputs
    channels, height, width = (int(size) for size in x.shape[1:])
    program.port(x.name, "map", channels, height, width)
    program.port(label.name, "ids", 1)
    program.port(row.name, "row", classifier.row_width)
    program.port(g.name, "map", channels, height, width, output=True)
    program.port(entropy.name, "map", 1, output=True)
    lowering = Blocks(program, {}, offsets_of(classifier.projections), iter(()), None)
    blocks = list(classifier.input_blocks.named_children())
    (stem,) = blocks[0][1].children()
    assert isinstance(stem, nn.Conv2d)
    patches = program.input("input", [x.name], channels, height, width, kernel=3)
    h = program.conv("input_blocks.0.0", stem, [patches], patches=True)
    for name, block in blocks[1:]:
        h = lowering.block(f"input_blocks.{name}", block, [h])
    h = lowering.block("middle_block", classifier.middle_block, [h])
    _classified(program, classifier.out, h, label.name, entropy.name)
    program.back(g.name)
    return program.finish()


def _classified(program: GradientAssembler, out: nn.Sequential, h: Value, label: str, entropy: str) -> None:
    """norm, SiLU, the pool and the last layer. A pool's matrix is linear, so its places and its bias are added behind it."""
    norm, _, pool, *last = out
    if not isinstance(pool, AttentionPool):
        active = program.norm("out.1", [h], group_norm(norm), "silu")
        assert isinstance(last[0], nn.Conv2d)
        program.classify("out.3", active, label, entropy, last[0])
        return
    weight, bias = pool.qkv_proj.weight[:, :, 0].detach(), pool.qkv_proj.bias
    assert bias is not None, "an attention pool's projection has a bias"
    qkv = program.conv("out.2.qkv_proj", pointwise(weight, None), [h], norm=group_norm(norm), activation="silu")
    places = (weight.double() @ pool.positional_embedding.detach().double() + bias.detach().double()[:, None]).T
    scale = 1 / math.sqrt(h.channels // pool.heads)
    program.classify(
        "out.2.c_proj", qkv, label, entropy, pool.c_proj, heads=pool.heads, scale=scale, places=places.float().contiguous()
    )
