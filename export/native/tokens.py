"""The networks around a latent denoiser that know tables: conditioners, keys and values of tokens, the codebook's search."""

from __future__ import annotations

import torch

from engine.bundle.tensors import TensorSpec
from export.graphs.roles import Role
from export.models.latent.conditioners import ClassEmbedder, FeedForward, Rescaler, SelfAttention, TokenEncoder
from export.models.latent.graphs import Codebook, KeysValues
from export.models.openai.graphs import LabelEmbedding
from export.native.latent import matrix, pointwise
from export.native.program import MAX_CODE_CHANNELS, MAX_SIDE, Assembled, Assembler, Norm, Value


def codebook_unfit(role: Role) -> str | None:
    """What a codebook has that cannot be lowered, or None."""
    channels = int(role.inputs[0].shape[1])
    return f"codes of {channels} channels, expected at most {MAX_CODE_CHANNELS}" if channels > MAX_CODE_CHANNELS else None


def rescaler_unfit(role: Role) -> str | None:
    """What a map of labels has that cannot be lowered, or None."""
    height, width = (int(side) for side in role.inputs[0].shape[1:])
    if max(height, width) <= MAX_SIDE:
        return None
    return f"labels of {height} x {width}, expected sides of at most {MAX_SIDE}"


def lower_class(role: Role) -> Assembled:
    """label -> context, one token."""
    assert isinstance(role.module, ClassEmbedder)
    return _looked_up(role, "embedding", role.module.embedding.weight, "tokens")


def lower_label(role: Role) -> Assembled:
    """label -> what is added to the time embedding."""
    assert isinstance(role.module, LabelEmbedding)
    return _looked_up(role, "table", role.module.table.weight, "map")


def _looked_up(role: Role, name: str, table: torch.Tensor, kind: str) -> Assembled:
    """A label's row of a table, to an output port of this kind."""
    program, (label,), (row,) = Assembler(role.name, "f32"), role.inputs, role.outputs
    ids = program.port(label.name, "ids", 1)
    port = program.port(row.name, kind, table.shape[1], output=True)
    program.embed(name, ids, (1, 1), table, port=port)
    return program.finish()


def lower_rescaler(role: Role) -> Assembled:
    """segmentation -> cond: the mean of its labels' rows."""
    graph, (labels,), (cond,) = role.module, role.inputs, role.outputs
    assert isinstance(graph, Rescaler)
    program, (height, width) = Assembler(role.name, "f32"), (int(side) for side in labels.shape[1:])
    ids = program.port(labels.name, "ids", 1, height, width)
    _, channels, h, w = cond.shape
    port = program.port(cond.name, "map", int(channels), int(h), int(w), output=True)
    program.embed("channel_mapper", ids, (height, width), graph.rows(), side=1 << graph.spec.stages, port=port)
    return program.finish()


def lower_encoder(role: Role) -> Assembled:
    """tokens -> context: embeddings, the layers, and a LayerNorm, which an identity makes an output."""
    graph, (tokens,), (context,) = role.module, role.inputs, role.outputs
    assert isinstance(graph, TokenEncoder)
    program, network, length = Assembler(role.name, "bf16"), graph.transformer, int(tokens.shape[1])
    ids = program.port(tokens.name, "ids", 1, length)
    output = _tokens_out(program, context)
    places = network.pos_emb.emb.weight[:length]
    h = program.embed("token_emb", ids, (length, 1), network.token_emb.weight, places=places)
    for index, layer in network.attn_layers.layers.named_children():
        norm, part = layer.children()
        assert isinstance(norm, torch.nn.LayerNorm)
        h = _layer(program, f"attn_layers.layers.{index}", Norm(norm), part, h)
    program.conv("norm", pointwise(torch.eye(h.channels), None), [h], norm=Norm(network.norm), port=output)
    return program.finish()


def _layer(program: Assembler, name: str, norm: Norm, part: torch.nn.Module, h: Value) -> Value:
    """Self-attention or feed-forward behind a norm, + h."""
    if isinstance(part, SelfAttention):
        qkv = pointwise(torch.cat([layer.weight for layer in (part.to_q, part.to_k, part.to_v)]), None)
        seen = program.attention(name, [program.conv(f"{name}.qkv", qkv, [h], norm=norm)], part.heads, part.scale)
        return program.conv(f"{name}.to_out", matrix(part.to_out), [seen], residual=h)
    assert isinstance(part, FeedForward), "a token encoder has no other layers"
    first, _, last = part.net
    assert isinstance(first, torch.nn.Sequential)
    wide = program.conv(f"{name}.net.0", matrix(first[0]), [h], norm=norm)
    return program.conv(f"{name}.net.2", matrix(last), [wide], activation="gelu", residual=h)


def lower_keys_values(role: Role) -> Assembled:
    """context -> keys_values: one matrix."""
    graph, (context,), (given,) = role.module, role.inputs, role.outputs
    assert isinstance(graph, KeysValues)
    program, (_, length, width) = Assembler(role.name, "bf16"), context.shape
    port = program.port(context.name, "tokens", int(width), int(length))
    output = _tokens_out(program, given)
    tokens = program.input_tokens("tokens", port, int(width), int(length))
    program.conv("projection", matrix(graph.projection), [tokens], port=output)
    return program.finish()


def lower_codebook(role: Role) -> Assembled:
    """latent -> codes."""
    graph, (latent,), (codes,) = role.module, role.inputs, role.outputs
    assert isinstance(graph, Codebook)
    program, (channels, height, width) = Assembler(role.name, "f32"), (int(side) for side in latent.shape[1:])
    port = program.port(latent.name, "map", channels, height, width)
    output = program.port(codes.name, "map", channels, height, width, output=True)
    program.nearest("codebook", port, graph.quantize.embedding.weight, graph.scale, output)
    return program.finish()


def _tokens_out(program: Assembler, spec: TensorSpec) -> str:
    """The output port of tokens [batch, length, width]."""
    _, length, width = spec.shape
    return program.port(spec.name, "tokens", int(width), int(length), output=True)
