"""Denoisers whose norms a label map scales and shifts as programs: export/models/openai/spade.py, beside the
blocks of latent.py.

A norm with its map and its activation is one operation, whose result the convolution reads. The map [gamma | beta] is a
slice of what was made before the loop, or made here of the label map at that size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from export.graphs.roles import Role
from export.models.openai.graphs import MappedDenoiser
from export.models.openai.spade import Spade
from export.models.openai.unet import OpenAIUNet, SpadeBlock
from export.native.latent import Blocks, denoiser_unfit, lower_unet, offsets_of, second
from export.native.program import MAX_ROW, Assembled, Assembler, Norm, Value
from export.native.scales import Scale

SEGMAP, MODULATION = "segmap", "modulation"


def mapped_unfit(role: Role) -> str | None:
    """What a denoiser with a label map has that cannot be lowered, or None."""
    widths = [int(spec.shape[1]) for spec in role.inputs if spec.name == MODULATION]
    if widths and max(widths) > MAX_ROW:
        return f"gamma and beta of {max(widths)} values, expected at most {MAX_ROW}"
    return denoiser_unfit(role)


def lower_mapped(role: Role, precision: str = "bf16", scales: Mapping[str, Scale] | None = None) -> Assembled:
    """x, (segmap), (modulation), row -> the prediction. `scales`: the operations in int8, by name (operands.eligible)."""
    graph = role.module
    assert isinstance(graph, MappedDenoiser)
    unet, program = graph.unet, Assembler(role.name, precision)
    size = (int(role.inputs[0].shape[2]), int(role.inputs[0].shape[3]))
    for spec in role.inputs[:-1]:
        program.port(spec.name, "map", *(int(d) for d in spec.shape[1:]))
    program.port("row", "row", unet.row_width)
    outputs = [program.port(spec.name, "map", int(spec.shape[1]), *size, output=True) for spec in role.outputs]
    made = _modulations(program, unet, size, graph.made_from)
    lowering = _MappedBlocks(program, scales or {}, offsets_of(unet.projections), iter(()), None, made)
    lower_unet(lowering, unet, ["x"], size, outputs)
    return program.finish()


def _modulations(program: Assembler, unet: OpenAIUNet, size: tuple[int, int], made_from: int) -> Iterator[Value]:
    """[gamma | beta] of each norm in turn; the operations that make it stand where it is asked for."""
    names = {module: name for name, module in unet.named_modules()}
    labels: dict[int, Value] = {}  # the label map, of each factor
    begin = 0
    for spade, factor in unet.spades():
        name, channels, height, width = names[spade], 2 * spade.channels, size[0] // factor, size[1] // factor
        if factor >= made_from:
            yield program.input_slice(f"{name}.modulation", MODULATION, begin, channels, height, width)
            begin += channels * height * width
            continue
        if factor not in labels:
            known = unet.spec.map_channels or 0
            labels[factor] = program.input(f"{SEGMAP}.{factor}", [SEGMAP], known, height, width, stride=factor)
        shared = spade.mlp_shared[0]
        assert isinstance(shared, nn.Conv2d)
        hidden = program.conv(f"{name}.mlp_shared.0", shared, [labels[factor]])
        yield program.conv(f"{name}.modulation", _both(spade), [hidden], activation="relu")


def _both(spade: Spade) -> nn.Conv2d:
    """What makes gamma, then beta, as one convolution."""
    layers = (spade.mlp_gamma, spade.mlp_beta)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    layer = nn.Conv2d(spade.mlp_gamma.in_channels, 2 * spade.channels, 3, padding=1, device="meta")
    layer.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    layer.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return layer


@dataclass
class _MappedBlocks(Blocks):
    """Each norm of a label map takes the next of the modulations."""

    modulations: Iterator[Value]

    def module(self, name: str, module: nn.Module, sources: Sequence[Value]) -> Value:
        if isinstance(module, SpadeBlock):
            return self.mapped(name, module, sources, next(self.offsets))
        return super().module(name, module, sources)

    def mapped(self, name: str, block: SpadeBlock, sources: Sequence[Value], offset: int) -> Value:
        """norm, SiLU, resampling, conv (+ row), norm (scaled and shifted by the row behind the map), SiLU, conv, + skip."""
        program, first, last = self.program, block.in_layers[1], block.out_layers[2]
        assert isinstance(first, nn.Conv2d)
        named, bias_row = f"{name}.in_layers.1", None if block.scale_shift else offset
        active = self.active(f"{name}.in_norm", block.in_norm, sources, None)
        if block.resample < 1:
            active, sources = program.pool(f"{name}.h_upd", active, 2), [program.pool(f"{name}.x_upd", sources[0], 2)]
        h = program.conv(
            named, first, [active], bias_row=bias_row, doubled=block.resample > 1, int8=self.scales.get(named)
        )  # fmt: skip
        if block.resample > 1:
            sources = [program.upsample(f"{name}.x_upd", sources[0], 2)]
        h = self.active(f"{name}.out_norm", block.out_norm, [h], offset if block.scale_shift else None)
        named = f"{name}.out_layers.2"
        return second(program, named, last, h, None, sources, block.skip_connection, self.scales.get(named))

    def active(self, name: str, spade: Spade, sources: Sequence[Value], scale_row: int | None) -> Value:
        """The next modulation, the norm and SiLU."""
        modulation = next(self.modulations)
        return self.program.norm(name, sources, Norm(spade.norm, scale_row), "silu", modulation)
