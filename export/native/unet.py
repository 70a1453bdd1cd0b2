"""The denoiser and its timestep table as programs: export/models/unet.py, layer by layer, same order, same names.

Norm, activation, convolution and everything that is added are one operation; concatenations are lists of sources; the
nearest doubling before a convolution is folded into it; the embedding arrives as slices of one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from engine.errors import ExportError
from export.graphs.roles import Role
from export.models.graphs import TimestepTable
from export.models.unet import Attention, Downsample, ResBlock, Stage, UNet, Upsample
from export.native.operands import unet_of
from export.native.program import Assembled, Assembler, Norm, Skip, Value
from export.native.scales import Scale


def lower_denoiser(role: Role, precision: str = "bf16", scales: Mapping[str, Scale] | None = None) -> Assembled:
    """x, (cond), row -> the network's answer. `scales`: the convolutions in int8, by module name."""
    unet = unet_of(role)
    assert isinstance(unet, UNet)
    spec, answer = unet.spec, role.outputs[0].name
    size = spec.image_size
    program = Assembler(role.name, precision)
    inputs = [program.port("x", "map", spec.out_channels, size, size)]
    if spec.conditional:
        inputs.append(program.port("cond", "map", spec.out_channels, size, size))
    program.port("row", "row", unet.row_width)
    output = program.port(answer, "map", spec.out_channels, size, size, output=True)
    lowering = _Denoiser(program, unet, scales or {})
    h = program.conv(
        "stem", unet.stem, [program.input("input", inputs, spec.in_channels, size, size, kernel=3)], patches=True
    )
    skips = [h]
    for index, module in enumerate(unet.encoder):
        h = lowering.module(f"encoder.{index}", module, [h])
        skips.append(h)
    for index, module in enumerate(unet.middle):
        h = lowering.module(f"middle.{index}", module, [h])
    for index, module in enumerate(unet.decoder):
        h = lowering.module(f"decoder.{index}", module, [h, skips.pop()])
    program.conv("out_conv", unet.out_conv, [h], norm=Norm(unet.out_norm), activation="silu", port=output)
    return program.finish()


@dataclass
class _Denoiser:
    """Lowers one module after the other; stages take their slices of the row in the order of UNet.stages()."""

    program: Assembler
    unet: UNet
    scales: Mapping[str, Scale]
    offsets: dict[nn.Module, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        offset = 0
        for stage in self.unet.stages():
            self.offsets[stage] = offset
            offset += stage.res.emb.out_features

    def module(self, name: str, module: nn.Module, sources: Sequence[Value]) -> Value:
        """One entry of a path."""
        if isinstance(module, Downsample):
            return self.program.conv(f"{name}.conv", module.conv, sources, far_padding=not module.symmetric)
        if not isinstance(module, Stage):
            raise ExportError(
                f"layer {name}: found {type(module).__name__}, expected a stage or a downsampling convolution: the native "
                "engine has no other; leave native out of --backends"
            )
        h = self.residual(f"{name}.res", module.res, sources, self.offsets[module])
        if module.attn is not None:
            h = self.attention(f"{name}.attn", module.attn, h)
        return h if module.up is None else self.doubled(f"{name}.up", module.up, h)

    def residual(self, name: str, block: ResBlock, sources: Sequence[Value], offset: int) -> Value:
        """norm, SiLU, conv (+ row), norm (scaled and shifted by the row), SiLU, conv, + skip."""
        h = self.program.conv(
            f"{name}.conv1", block.conv1, sources, norm=Norm(block.norm1), activation="silu",
            bias_row=None if block.scale_shift else offset, int8=self.scales.get(f"{name}.conv1"),
        )  # fmt: skip
        alone = len(sources) == 1 and isinstance(block.skip, nn.Identity)
        return self.program.conv(
            f"{name}.conv2", block.conv2, [h], norm=Norm(block.norm2, offset if block.scale_shift else None),
            activation="silu", residual=sources[0] if alone else None,
            skip=None if alone else _skip(block, sources), int8=self.scales.get(f"{name}.conv2"),
        )  # fmt: skip

    def attention(self, name: str, block: Attention, x: Value) -> Value:
        """norm, [q | k | v], attention, projection, + x."""
        qkv = self.program.conv(f"{name}.qkv", block.qkv, [x], norm=Norm(block.norm))
        h = self.program.attention(name, [qkv], block.heads, block.scale)
        return self.program.conv(f"{name}.proj", block.proj, [h], residual=x)

    def doubled(self, name: str, block: Upsample, x: Value) -> Value:
        """Nearest doubling and a convolution, as one."""
        return self.program.conv(f"{name}.conv", block.conv, [x], doubled=True)


def _skip(block: ResBlock, sources: Sequence[Value]) -> Skip:
    """The 1 x 1 of a residual block; a concatenation that is added as it is goes through an identity, which is exact."""
    if isinstance(block.skip, nn.Conv2d):
        return Skip(sources, block.skip.weight, block.skip.bias)
    channels = sum(source.channels for source in sources)
    return Skip(sources, torch.eye(channels)[:, :, None, None], None)


def lower_table(role: Role) -> Assembled:
    """timesteps, (z) -> rows, in float32 throughout: what it rounds off would enter every step."""
    table = role.module
    assert isinstance(table, TimestepTable)
    program = Assembler(role.name, "f32")
    timesteps = program.port("timesteps", "steps", 1)
    conditioned = table.z_mlp is not None
    if conditioned:
        program.port("z", "table", table.z_dim, rows="batch")
    rows = program.port(
        "rows", "table", table.weight.shape[0], output=True, rows="pairs" if conditioned else "steps"
    )
    emb = _mlp(program, "time_mlp", table.time_mlp, program.lookup("sinusoids", timesteps, table.sinusoids))
    if table.z_mlp is not None:
        given = program.input_rows("input", "z", table.z_dim)
        added = given if isinstance(table.z_mlp, nn.Identity) else _mlp(program, "z_mlp", table.z_mlp, given)
        emb = program.add("emb", emb, added)
    program.linear("projection", emb, table.weight, table.bias, silu=True, port=rows)
    return program.finish()


def _mlp(program: Assembler, name: str, mlp: nn.Module, source: Value) -> Value:
    """Linear, SiLU, Linear."""
    layers = list(mlp.children())
    if [type(layer) for layer in layers] != [nn.Linear, nn.SiLU, nn.Linear]:
        raise ExportError(f"layer {name}: found {mlp}, expected a linear layer, SiLU and a linear layer")
    first, second = layers[0], layers[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    h = program.linear(f"{name}.0", source, first.weight, first.bias)
    return program.linear(f"{name}.2", h, second.weight, second.bias, silu=True)
