"""The VAE's two halves as programs: export/models/vae.py, layer by layer; every convolution behind its GELU."""

from __future__ import annotations

from torch import nn

from engine.errors import ExportError
from export.graphs.roles import Role
from export.models.graphs import DecoderGraph, EncoderGraph
from export.models.vae import ResBlock
from export.native.program import Assembled, Assembler, Value


def lower_encoder(role: Role) -> Assembled:
    """image -> mu, logvar."""
    graph = role.module
    assert isinstance(graph, EncoderGraph)
    size, z_dim, enc = graph.spec.image_size, graph.spec.z_dim, graph.enc
    program = Assembler(role.name, "bf16")
    image = program.port("image", "map", enc.in_conv.in_channels, size, size)
    outputs = {name: program.port(name, "map", z_dim, output=True) for name in ("mu", "logvar")}
    patches = program.input("input", [image], enc.in_conv.in_channels, size, size, kernel=3)
    h = program.conv("in_conv", enc.in_conv, [patches], patches=True)
    h = _blocks(program, enc.block_mod, h)
    for name, module in (("mu", enc.mu), ("logvar", enc.logvar)):
        program.conv(f"{name}_conv", module, [h], port=outputs[name])
    return program.finish()


def lower_decoder(role: Role) -> Assembled:
    """z -> image in [-1, 1]."""
    graph = role.module
    assert isinstance(graph, DecoderGraph)
    size, z_dim, dec = graph.spec.image_size, graph.spec.z_dim, graph.dec
    program = Assembler(role.name, "bf16")
    z = program.port("z", "map", z_dim)
    image = program.port("image", "map", dec.last_conv.out_channels, size, size, output=True)
    h = _blocks(program, dec.block_mod, program.input("input", [z], z_dim, 1, 1))
    program.conv("last_conv", dec.last_conv, [h], port=image, output_activation="signed_sigmoid")
    return program.finish()


def _blocks(program: Assembler, path: nn.Module, h: Value) -> Value:
    for index, module in enumerate(path.children()):
        name = f"block_mod.{index}"
        if isinstance(module, ResBlock):
            h = _residual(program, name, module, h)
        elif isinstance(module, nn.Conv2d):
            h = program.conv(name, module, [h])
        elif (factor := _whole_factor(module)) is not None:
            h = program.upsample(name, h, factor) if factor > 1 else h
        else:
            raise ExportError(
                f"layer {name}: found {module}, expected a residual block, a 1 x 1 convolution or nearest upsampling by a "
                "whole factor: the native engine has no other; leave native out of --backends"
            )
    return h


def _whole_factor(module: nn.Module) -> int | None:
    """The factor of a nearest upsampling by a whole number; None for any other module."""
    if not isinstance(module, nn.Upsample) or module.mode != "nearest" or not isinstance(module.scale_factor, (int, float)):
        return None
    return int(module.scale_factor) if module.scale_factor == int(module.scale_factor) else None


def _residual(program: Assembler, name: str, block: ResBlock, x: Value) -> Value:
    """Four convolutions, each behind a GELU, + x, then pooling."""
    h = x
    for part in ("c1", "c2", "c3"):
        h = program.conv(f"{name}.{part}", getattr(block, part), [h], activation="gelu")
    h = program.conv(f"{name}.c4", block.c4, [h], activation="gelu", residual=x)
    return program.pool(f"{name}.pool", h, block.pool) if block.pool > 1 else h
