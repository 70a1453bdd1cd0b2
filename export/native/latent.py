"""The networks of latent and guided diffusion as programs: those of export/models/latent and openai, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from engine.bundle.tensors import TensorSpec
from export.graphs.roles import Role
from export.models.latent.first_stage import Attention, Downsample, Level, Middle
from export.models.latent.first_stage import ResBlock as StageBlock
from export.models.latent.graphs import FirstStageDecoder, FirstStageEncoder
from export.models.openai.graphs import OpenAIDenoiser
from export.models.openai.unet import AttentionBlock, OpenAIUNet, ResBlock, SpatialTransformer, TransformerBlock
from export.models.openai.unet import Downsample as UNetDownsample
from export.models.unet import Upsample
from export.native.operands import tokens_of
from export.native.program import MAX_ATTENTION_PIXELS, MAX_SIDE, Assembled, Assembler, Norm, Skip, Value
from export.native.scales import Scale


def denoiser_unfit(role: Role) -> str | None:
    """What a denoiser has that cannot be lowered, or None."""
    unet = role.module.unet
    assert isinstance(unet, OpenAIUNet)
    height, width = _size(role.inputs[0])
    factors = [factor for factor in unet.spec.attention_factors if factor < 1 << len(unet.spec.channel_mult)]
    factor = min(factors, default=1 << (len(unet.spec.channel_mult) - 1))
    return large(height // factor * (width // factor))


def encoder_unfit(role: Role) -> str | None:
    """What an encoder has that cannot be lowered, or None."""
    assert isinstance(role.module, FirstStageEncoder)
    return _stage_unfit(role.module.encoder.down, role.module.encoder.mid, *_size(role.inputs[0]))


def decoder_unfit(role: Role) -> str | None:
    """What a decoder has that cannot be lowered, or None."""
    assert isinstance(role.module, FirstStageDecoder)
    return _stage_unfit(role.module.decoder.up, role.module.decoder.mid, *_size(role.outputs[0]))


def _stage_unfit(levels: nn.ModuleList, middle: Middle, height: int, width: int) -> str | None:
    """Levels from the full resolution on."""
    if max(height, width) > MAX_SIDE:
        return f"images of {height} x {width}, expected sides of at most {MAX_SIDE}"
    last = len(levels) - 1
    attending = [i for i, level in enumerate(levels) if isinstance(level, Level) and len(level.attn)]
    attending += [last] if isinstance(middle.attn_1, Attention) else []
    return large((height >> min(attending)) * (width >> min(attending))) if attending else None


def large(pixels: int) -> str | None:
    """What of attention over so many pixels cannot be lowered, or None."""
    if pixels <= MAX_ATTENTION_PIXELS:
        return None
    return f"attention over {pixels} pixels, expected at most {MAX_ATTENTION_PIXELS}"


def _size(spec: TensorSpec) -> tuple[int, int]:
    """Height and width of a map."""
    height, width = spec.shape[2:]
    return int(height), int(width)


# ---- the denoiser ----------------------------------------------------------------------------------


def lower_denoiser(role: Role, precision: str = "bf16", scales: Mapping[str, Scale] | None = None) -> Assembled:
    """x, (cond), (keys_values), row -> the prediction. `scales`: the operations in int8, by name (operands.eligible)."""
    graph = role.module
    assert isinstance(graph, OpenAIDenoiser)
    unet, (height, width) = graph.unet, _size(role.inputs[0])
    program = Assembler(role.name, precision)
    maps = [
        program.port(spec.name, "map", int(spec.shape[1]), height, width) for spec in role.inputs if len(spec.shape) == 4
    ]
    context = next((spec for spec in role.inputs if len(spec.shape) == 3), None)
    tokens = tokens_of(role)
    if context is not None:
        program.port(context.name, "tokens", unet.context_width, tokens)
    program.port("row", "row", unet.row_width)
    outputs = [program.port(spec.name, "map", int(spec.shape[1]), height, width, output=True) for spec in role.outputs]
    given = None if context is None else program.input_tokens("tokens", context.name, unet.context_width, tokens)
    keys = offsets_of(unet.context_projections[::2], 2)  # of the keys, behind which lie as many values
    lowering = Blocks(program, scales or {}, offsets_of(unet.projections), keys, given)
    lower_unet(lowering, unet, maps, (height, width), outputs)
    return program.finish()


def lower_unet(
    lowering: Blocks, unet: OpenAIUNet, maps: Sequence[str], size: tuple[int, int], outputs: Sequence[str]
) -> None:
    """From input ports to output ports."""
    program, blocks = lowering.program, list(unet.input_blocks.named_children())
    (stem,) = blocks[0][1].children()
    assert isinstance(stem, nn.Conv2d)
    patches = program.input("input", maps, unet.spec.in_channels, *size, kernel=3)
    h = program.conv("input_blocks.0.0", stem, [patches], patches=True)
    skips = [h]
    for name, block in blocks[1:]:
        h = lowering.block(f"input_blocks.{name}", block, [h])
        skips.append(h)
    h = lowering.block("middle_block", unet.middle_block, [h])
    for name, block in unet.output_blocks.named_children():
        h = lowering.block(f"output_blocks.{name}", block, [h, skips.pop()])
    norm, _, conv = unet.out
    assert isinstance(conv, nn.Conv2d)
    for output, part in zip(outputs, _split(conv, len(outputs)), strict=True):  # an operation writes one port
        name = "out.2" if output == outputs[0] else f"out.2.{output}"
        program.conv(name, part, [h], norm=group_norm(norm), activation="silu", port=output)


def _split(conv: nn.Conv2d, parts: int) -> list[nn.Conv2d]:
    """A convolution as several, each with its share of the outputs."""
    if parts == 1:
        return [conv]
    assert conv.bias is not None, "the last convolution has a bias"
    made = []
    for weight, bias in zip(conv.weight.chunk(parts), conv.bias.chunk(parts), strict=True):
        layer = nn.Conv2d(conv.in_channels, len(weight), 3, padding=1, device="meta")
        layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        made.append(layer)
    return made


def offsets_of(layers: Sequence[nn.Linear], times: int = 1) -> Iterator[int]:
    """Where each layer's slice of what they all make begins, in the order in which they run; `times` their width each."""
    offset = 0
    for layer in layers:
        yield offset
        offset += times * layer.out_features


@dataclass
class Blocks:
    """Lowers the blocks of a network one after the other; each residual block takes the next slice of the row, each
    cross-attention the next of the tokens' keys and values."""

    program: Assembler
    scales: Mapping[str, Scale]
    offsets: Iterator[int]
    keys: Iterator[int]
    tokens: Value | None

    def block(self, name: str, block: nn.Module, sources: Sequence[Value]) -> Value:
        """One entry of a path: its modules in turn."""
        for index, module in block.named_children():
            sources = [self.module(f"{name}.{index}", module, sources)]
        return sources[0]

    def module(self, name: str, module: nn.Module, sources: Sequence[Value]) -> Value:
        """One module."""
        if isinstance(module, ResBlock):
            return self.residual(name, module, sources, next(self.offsets))
        if isinstance(module, AttentionBlock):
            return self.attention(name, module, sources[0])
        if isinstance(module, SpatialTransformer):
            return self.transformer(name, module, sources[0])
        if isinstance(module, UNetDownsample):
            return self.program.conv(f"{name}.op", module.op, sources)
        assert isinstance(module, Upsample), "an OpenAIUNet has no other modules"
        return self.program.conv(f"{name}.conv", module.conv, sources, doubled=True)

    def residual(self, name: str, block: ResBlock, sources: Sequence[Value], offset: int) -> Value:
        """norm, SiLU, resampling, conv (+ row), norm (scaled and shifted by the row), SiLU, conv, + skip."""
        norm, first = group_norm(block.in_layers[0]), block.in_layers[2]
        program, last = self.program, block.out_layers[3]
        assert isinstance(first, nn.Conv2d)
        named, bias_row = f"{name}.in_layers.2", None if block.scale_shift else offset
        if block.resample < 1:
            active = program.norm(f"{name}.in_layers.1", sources, norm, "silu")
            sources = [program.pool(f"{name}.x_upd", sources[0], 2)]
            h = program.conv(named, first, [program.pool(f"{name}.h_upd", active, 2)], bias_row=bias_row)
        else:
            doubled = block.resample > 1
            h = program.conv(
                named, first, sources, norm=norm, activation="silu", doubled=doubled, bias_row=bias_row,
                int8=self.scales.get(named),
            )  # fmt: skip
            sources = [program.upsample(f"{name}.x_upd", sources[0], 2)] if doubled else sources
        return second(
            program, f"{name}.out_layers.3", last, h, group_norm(block.out_layers[0], offset if block.scale_shift else None),
            sources, block.skip_connection, self.scales.get(f"{name}.out_layers.3"),
        )  # fmt: skip

    def attention(self, name: str, block: AttentionBlock, x: Value) -> Value:
        """norm, [q | k | v], attention, projection, + x."""
        order = torch.arange(3 * x.channels).reshape(block.heads, 3, -1).transpose(0, 1).flatten()
        bias = block.qkv.bias
        qkv = pointwise(block.qkv.weight[order], None if bias is None else bias[order])
        int8 = self.scales.get(f"{name}.qkv")
        return _attended(self.program, name, block.norm, qkv, block.heads, block.scale, block.proj_out, x, int8)

    def transformer(self, name: str, module: SpatialTransformer, x: Value) -> Value:
        """norm, a matrix, the blocks, a matrix, + x; a token is a pixel, and every matrix a 1 x 1 convolution."""
        h = self.normed(f"{name}.proj_in", module.proj_in, x, module.norm)
        for index, block in module.transformer_blocks.named_children():
            assert isinstance(block, TransformerBlock)
            h = self.transformer_block(f"{name}.transformer_blocks.{index}", block, h)
        return self.program.conv(f"{name}.proj_out", module.proj_out, [h], residual=x)

    def transformer_block(self, name: str, block: TransformerBlock, h: Value) -> Value:
        """Attention to the pixels, attention to the tokens, GEGLU; each behind a LayerNorm and added to what came in."""
        assert self.tokens is not None, "a UNet with transformers takes keys_values"
        program, own, other = self.program, block.attn1, block.attn2
        qkv = pointwise(torch.cat([layer.weight for layer in (own.to_q, own.to_k, own.to_v)]), None)
        seen = self.normed(f"{name}.attn1.qkv", qkv, h, block.norm1)
        seen = program.attention(f"{name}.attn1", [seen], own.heads, own.scale)
        h = program.conv(f"{name}.attn1.to_out.0", matrix(own.to_out[0]), [seen], residual=h)
        asks = h  # of a single token: its weight is 1 whatever the query
        if self.tokens.height > 1:
            asks = self.normed(f"{name}.attn2.to_q", matrix(other.to_q), h, block.norm2)
        seen = program.attention(f"{name}.attn2", [asks, self.tokens], other.heads, other.scale, next(self.keys))
        h = program.conv(f"{name}.attn2.to_out.0", matrix(other.to_out[0]), [seen], residual=h)
        last, int8 = f"{name}.ff.net.2", self.scales.get(f"{name}.ff.net.2")
        wide = self.normed(f"{name}.ff.net.0.proj", smoothed(block.ff.net[0].proj, int8), h, block.norm3)
        return program.conv(last, matrix(block.ff.net[2]), [wide], activation="geglu", residual=h, int8=int8)

    def normed(self, name: str, product: nn.Conv2d, x: Value, norm: nn.GroupNorm | nn.LayerNorm) -> Value:
        """A 1 x 1 convolution right behind a norm, in int8 where it was chosen."""
        return self.program.conv(name, product, [x], norm=Norm(norm), int8=self.scales.get(name))


# ---- the first stage -------------------------------------------------------------------------------


def lower_encoder(role: Role) -> Assembled:
    """image -> latent, scaled; of KL the mean alone."""
    graph = role.module
    assert isinstance(graph, FirstStageEncoder)
    (height, width), encoder = _size(role.inputs[0]), graph.encoder
    program = Assembler(role.name, "bf16")
    image = program.port("image", "map", encoder.conv_in.in_channels, height, width)
    latent = program.port("latent", "map", graph.channels, *_size(role.outputs[0]), output=True)
    patches = program.input("input", [image], encoder.conv_in.in_channels, height, width, kernel=3)
    h = program.conv("encoder.conv_in", encoder.conv_in, [patches], patches=True)
    for name, level in encoder.down.named_children():
        h = _level(program, f"encoder.down.{name}", level, h)
    h = _middle(program, "encoder.mid", encoder.mid, h)
    h = program.conv("encoder.conv_out", encoder.conv_out, [h], norm=Norm(encoder.norm_out), activation="silu")
    kept, bias = slice(graph.channels), graph.quant_conv.bias
    assert bias is not None, "the convolution of a first stage has a bias"
    last = pointwise(graph.quant_conv.weight[kept] * graph.scale, bias[kept] * graph.scale)
    program.conv("quant_conv", last, [h], port=latent)
    return program.finish()


def lower_decoder(role: Role) -> Assembled:
    """latent, scaled -> image."""
    graph = role.module
    assert isinstance(graph, FirstStageDecoder)
    (height, width), decoder = _size(role.inputs[0]), graph.decoder
    program = Assembler(role.name, "bf16")
    latent = program.port("latent", "map", graph.post_quant_conv.in_channels, height, width)
    image = program.port("image", "map", decoder.conv_out.out_channels, *_size(role.outputs[0]), output=True)
    first = pointwise(graph.post_quant_conv.weight / graph.scale, graph.post_quant_conv.bias)
    z = program.input("input", [latent], graph.post_quant_conv.in_channels, height, width)
    h = program.conv("decoder.conv_in", decoder.conv_in, [program.conv("post_quant_conv", first, [z])])
    h = _middle(program, "decoder.mid", decoder.mid, h)
    for name, level in reversed(list(decoder.up.named_children())):
        h = _level(program, f"decoder.up.{name}", level, h)
    program.conv("decoder.conv_out", decoder.conv_out, [h], norm=Norm(decoder.norm_out), activation="silu", port=image)
    return program.finish()


def _level(program: Assembler, name: str, level: nn.Module, h: Value) -> Value:
    """Residual blocks, each with its attention, and the resampling."""
    assert isinstance(level, Level)
    for index, block in enumerate(level.block):
        h = _stage_block(program, f"{name}.block.{index}", block, h)
        if len(level.attn):
            h = _stage_attention(program, f"{name}.attn.{index}", level.attn[index], h)
    if isinstance(level.downsample, Downsample):
        h = program.conv(f"{name}.downsample.conv", level.downsample.conv, [h], far_padding=True)
    if isinstance(level.upsample, Upsample):
        h = program.conv(f"{name}.upsample.conv", level.upsample.conv, [h], doubled=True)
    return h


def _middle(program: Assembler, name: str, middle: Middle, h: Value) -> Value:
    h = _stage_block(program, f"{name}.block_1", middle.block_1, h)
    if isinstance(middle.attn_1, Attention):
        h = _stage_attention(program, f"{name}.attn_1", middle.attn_1, h)
    return _stage_block(program, f"{name}.block_2", middle.block_2, h)


def _stage_block(program: Assembler, name: str, block: nn.Module, x: Value) -> Value:
    """norm, SiLU, conv, norm, SiLU, conv, + skip."""
    assert isinstance(block, StageBlock)
    h = program.conv(f"{name}.conv1", block.conv1, [x], norm=Norm(block.norm1), activation="silu")
    return second(program, f"{name}.conv2", block.conv2, h, Norm(block.norm2), [x], block.nin_shortcut)


def _stage_attention(program: Assembler, name: str, block: nn.Module, x: Value) -> Value:
    assert isinstance(block, Attention)
    layers = [block.q, block.k, block.v]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    qkv = pointwise(torch.cat([layer.weight for layer in layers]), torch.cat(biases))
    return _attended(program, name, block.norm, qkv, 1, x.channels**-0.5, block.proj_out, x)


# ---- what both have --------------------------------------------------------------------------------


def group_norm(module: nn.Module, scale_row: int | None = None) -> Norm:
    """A layer of an nn.Sequential, which forgets what it holds."""
    assert isinstance(module, nn.GroupNorm)
    return Norm(module, scale_row)


def second(
    program: Assembler, name: str, conv: nn.Module, h: Value, norm: Norm | None, sources: Sequence[Value], skip: nn.Module,
    int8: Scale | None = None,
) -> Value:  # fmt: skip
    """The second half of a residual block: norm, SiLU, convolution, + skip; norm: None where h is behind both. A
    concatenation always has a convolution."""
    assert isinstance(conv, nn.Conv2d)
    added = Skip(sources, skip.weight, skip.bias) if isinstance(skip, nn.Conv2d) else None
    assert added is not None or len(sources) == 1, "what is added as it is must be one map"
    residual, activation = sources[0] if added is None else None, "identity" if norm is None else "silu"
    return program.conv(name, conv, [h], norm=norm, activation=activation, residual=residual, skip=added, int8=int8)


def _attended(
    program: Assembler, name: str, norm: nn.GroupNorm, qkv: nn.Conv2d, heads: int, scale: float, out: nn.Module, x: Value,
    int8: Scale | None = None,
) -> Value:  # fmt: skip
    """norm, [q | k | v], attention, projection, + x."""
    assert isinstance(out, nn.Conv1d | nn.Conv2d)
    h = program.conv(f"{name}.qkv", qkv, [x], norm=Norm(norm), int8=int8)
    h = program.attention(f"{name}.attention", [h], heads, scale)
    return program.conv(f"{name}.proj_out", pointwise(out.weight, out.bias), [h], residual=x)


def matrix(layer: nn.Module | torch.Tensor) -> nn.Conv2d:
    """A linear layer over the channels of each pixel."""
    assert isinstance(layer, nn.Linear)
    return pointwise(layer.weight, layer.bias)


def smoothed(layer: nn.Module | torch.Tensor, scale: Scale | None) -> nn.Conv2d:
    """The matrix before a GEGLU, whose first outputs are divided as the scale of what the GEGLU makes wants them."""
    assert isinstance(layer, nn.Linear)
    if scale is None or not scale.smooth:
        return matrix(layer)
    by = torch.cat([torch.tensor(scale.smooth), torch.ones(layer.out_features - len(scale.smooth))])
    return pointwise(layer.weight / by[:, None], None if layer.bias is None else layer.bias / by)


def pointwise(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A matrix [out, in, ...] as a 1 x 1 convolution."""
    outputs, inputs = weight.shape[:2]
    layer = nn.Conv2d(inputs, outputs, 1, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.reshape(outputs, inputs, 1, 1), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
