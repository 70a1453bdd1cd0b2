"""The generator of a denoising diffusion GAN as a program: export/models/ncsnpp.py, layer by layer, same order, same names.

What scales a residual sum is folded into the weights of all that is added but the residual, which the engine scales
itself; tanh(x) is 2 sigmoid(2 x) - 1. A filter reads a map, so that the norm and activation before it are an operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from export.graphs.roles import Role
from export.models.ncsnpp import (
    ROOT_HALF,
    Attention,
    Generator,
    GeneratorStep,
    LatentNorm,
    NetworkInNetwork,
    PyramidConv,
    ResBlock,
)
from export.native.latent import large, pointwise
from export.native.program import Assembled, Assembler, Norm, Skip, Value
from export.native.scales import Scale


def generator_unfit(role: Role) -> str | None:
    """What a generator has that cannot be lowered, or None."""
    assert isinstance(role.module, GeneratorStep)
    spec, (height, width) = role.module.generator.spec, role.inputs[0].shape[2:]
    level = spec.attends.index(True) if any(spec.attends) else len(spec.attends) - 1
    return large((int(height) >> level) * (int(width) >> level))


def lower_generator(role: Role, precision: str = "bf16", scales: Mapping[str, Scale] | None = None) -> Assembled:
    """x, row -> x0. `scales`: the convolutions in int8, by module name."""
    assert isinstance(role.module, GeneratorStep)
    generator, program = role.module.generator, Assembler(role.name, precision)
    channels, height, width = (int(d) for d in role.inputs[0].shape[1:])
    program.port("x", "map", channels, height, width)
    program.port("row", "row", sum(generator.row_widths))
    output = program.port(role.outputs[0].name, "map", channels, height, width, output=True)
    begins = accumulate(generator.row_widths, initial=0)
    lowering = _Blocks(program, scales or {}, begins)
    layers = ((f"all_modules.{name}", layer) for name, layer in list(generator.all_modules.named_children())[2:])
    name, stem = next(layers)
    assert isinstance(stem, nn.Conv2d)
    h = program.conv(name, stem, [program.input("input", ["x"], channels, height, width, kernel=3)], patches=True)
    h = _contracted(lowering, generator, layers, h, program.input("image", ["x"], channels, height, width))
    (_, norm), (name, last) = layers
    assert isinstance(norm, nn.GroupNorm)
    assert isinstance(last, nn.Conv2d)
    program.conv(
        name, scaled(last, 2.0), [h], norm=Norm(norm), activation="silu", port=output, output_activation="signed_sigmoid"
    )  # fmt: skip
    return program.finish()


Layers = Iterator[tuple[str, nn.Module]]


def _contracted(lowering: _Blocks, generator: Generator, layers: Layers, h: Value, pyramid: Value) -> Value:
    """From the first convolution to what the last norm reads."""
    spec, skips = generator.spec, [h]
    for level, attends in enumerate(spec.attends):
        for _ in range(spec.blocks):
            h = lowering.block(*next(layers), [h])
            h = lowering.attention(*next(layers), h) if attends else h
            skips.append(h)
        if level < len(spec.widths) - 1:
            h = lowering.block(*next(layers), [h])
            h = pyramid = lowering.pyramid(*next(layers), pyramid, h)
            skips.append(h)
    h = lowering.block(*next(layers), [h])
    h = lowering.attention(*next(layers), h)
    h = lowering.block(*next(layers), [h])
    for level in reversed(range(len(spec.widths))):
        for _ in range(spec.blocks + 1):
            h = lowering.block(*next(layers), [h, skips.pop()])
        h = lowering.attention(*next(layers), h) if spec.attends[level] else h
        if level > 0:
            h = lowering.block(*next(layers), [h])
    return h


@dataclass
class _Blocks:
    """Lowers one layer after the other; blocks take the next slices of the row."""

    program: Assembler
    scales: Mapping[str, Scale]
    begins: Iterator[int]

    def block(self, name: str, block: nn.Module, sources: Sequence[Value]) -> Value:
        """norm, SiLU, resampling, conv, + time, norm, SiLU, conv, + skip, by the root of one half."""
        assert isinstance(block, ResBlock)
        program, time, first, second = self.program, next(self.begins), next(self.begins), next(self.begins)
        norm, int8 = self.norm(block.GroupNorm_0, first), self.scales.get(f"{name}.Conv_0")
        if block.resample == 1:
            h = program.conv(
                f"{name}.Conv_0", block.Conv_0, sources, norm=norm, activation="silu", bias_row=time, int8=int8
            )  # fmt: skip
        else:
            up = block.resample > 1
            active = program.norm(f"{name}.GroupNorm_0", sources, norm, "silu")
            h = program.filtered(f"{name}.resampling", active, up=up)
            h = program.conv(f"{name}.Conv_0", block.Conv_0, [h], bias_row=time)
            sources = [program.filtered(f"{name}.resampling.skip", sources[0], up=up)]
        skip = _skip(block.Conv_2, sources)
        return program.conv(
            f"{name}.Conv_1", scaled(block.Conv_1, ROOT_HALF), [h], norm=self.norm(block.GroupNorm_1, second),
            activation="silu", residual=sources[0] if skip is None else None, residual_scale=ROOT_HALF, skip=skip,
            int8=self.scales.get(f"{name}.Conv_1"),
        )  # fmt: skip

    def norm(self, module: nn.Module, begin: int) -> Norm:
        """A norm that the row scales and shifts."""
        assert isinstance(module, LatentNorm)
        return Norm(module.norm, begin)

    def attention(self, name: str, block: nn.Module, x: Value) -> Value:
        """norm, [q | k | v], attention of one head, projection, + x, by the root of one half."""
        assert isinstance(block, Attention)
        parts = (block.NIN_0, block.NIN_1, block.NIN_2)
        qkv = pointwise(torch.cat([part.W.T for part in parts]), torch.cat([part.b for part in parts]))
        h = self.program.conv(f"{name}.qkv", qkv, [x], norm=Norm(block.GroupNorm_0))
        h = self.program.attention(name, [h], 1, block.scale)
        last = scaled(_matrix(block.NIN_3), ROOT_HALF)
        return self.program.conv(f"{name}.NIN_3", last, [h], residual=x, residual_scale=ROOT_HALF)

    def pyramid(self, name: str, layer: nn.Module, image: Value, h: Value) -> Value:
        """The image's own convolution, + h, by the root of one half."""
        folded = layer.folded() if isinstance(layer, PyramidConv) else layer
        assert isinstance(folded, nn.Conv2d)
        return self.program.conv(name, scaled(folded, ROOT_HALF), [image], residual=h, residual_scale=ROOT_HALF)


def _matrix(layer: NetworkInNetwork) -> nn.Conv2d:
    return pointwise(layer.W.T, layer.b)


def _skip(layer: nn.Module, sources: Sequence[Value]) -> Skip | None:
    """The 1 x 1 of a residual block; None where one map is added as it is."""
    if isinstance(layer, nn.Conv2d):
        layer = scaled(layer, ROOT_HALF)
        return Skip(sources, layer.weight, layer.bias)
    if len(sources) == 1:
        return None
    channels = sum(source.channels for source in sources)
    return Skip(sources, ROOT_HALF * torch.eye(channels)[:, :, None, None], None)


def scaled(layer: nn.Conv2d, factor: float) -> nn.Conv2d:
    """A convolution whose result is `factor` times as large."""
    made = nn.Conv2d(
        layer.in_channels, layer.out_channels, int(layer.kernel_size[0]), stride=int(layer.stride[0]),
        padding=int(layer.padding[0]), device="meta",
    )  # fmt: skip
    assert layer.bias is not None, "the convolutions of a generator have biases"
    made.weight = nn.Parameter(layer.weight.detach() * factor, requires_grad=False)
    made.bias = nn.Parameter(layer.bias.detach() * factor, requires_grad=False)
    return made
