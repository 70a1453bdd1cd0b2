"""The keys of diffusers' networks for those of CompVis checkpoints, which the modules here have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from export.models.latent.spec import FirstStageSpec, TokenConditionerSpec
from export.models.openai.spec import OpenAIUNetSpec
from export.read.checkpoint import Checkpoint, as_float32
from export.read.parts import Shapes, require

QKV = ("to_q", "to_k", "to_v")
PLAIN: dict[str, str] = {}
RES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut", "nin_shortcut": "conv_shortcut",
}  # fmt: skip
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0", "q": "to_q", "k": "to_k", "v": "to_v"}
RESAMPLE = {"op": "conv"}
# Of files from before 2023.
FORMER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass(frozen=True)
class Place:
    """A module in diffusers, and its own parts' names there by those here."""

    name: str
    parts: Mapping[str, str] = field(default_factory=dict)


Places = Mapping[str, Place]  # by the module here


def translated(
    checkpoint: Checkpoint,
    places: Places,
    shapes: Shapes,
    *,
    width: int | None = None,
    heads: int | None = None,
    useless: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """Float32 weights of these shapes by the keys here.

    places: of every module; width, heads: of one head, or how many, for attention whose q, k and v are one matrix here;
    useless: how keys to pass over begin. CheckpointError for weights that are missing, misshapen, unknown or not finite.
    """
    found = {_present(key): tensor for key, tensor in checkpoint.tensors.items() if not key.startswith(useless)}
    sources = {key: _sources(key, places) for key in shapes}
    expected = {
        name: _shape(found.get(name), shapes[key], len(names)) for key, names in sources.items() for name in names
    }
    require(found, expected, checkpoint.path, "", "the config.json beside it")
    weights = as_float32({name: found[name] for name in expected}, checkpoint.path)
    result = {}
    for key, names in sources.items():
        parts = [weights[name] for name in names]
        tensor = parts[0] if len(parts) == 1 else _merged(parts, width or len(parts[0]) // (heads or 1))
        result[key] = tensor.reshape(shapes[key])
    return result


def given_back(
    state: Mapping[str, torch.Tensor], places: Places, theirs: Shapes, *, width: int | None = None, heads: int | None = None
) -> dict[str, torch.Tensor]:
    """The inverse of `translated`: weights by the keys here as those by diffusers', in its shapes."""
    result: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        names = _sources(key, places)
        parts = (tensor,) if len(names) == 1 else _split(tensor, width or len(tensor) // len(names) // (heads or 1))
        result |= {name: part.reshape(theirs[name]) for name, part in zip(names, parts, strict=True)}
    return result


def unet_places(spec: OpenAIUNetSpec) -> dict[str, Place]:
    """Where each module of the denoiser is in UNet2DModel and UNet2DConditionModel."""
    attention = ATTENTION if spec.context_dim is None else PLAIN
    places = {
        "time_embed.0": Place("time_embedding.linear_1"),
        "time_embed.2": Place("time_embedding.linear_2"),
        "input_blocks.0.0": Place("conv_in"),
        "middle_block.0": Place("mid_block.resnets.0", RES),
        "middle_block.1": Place("mid_block.attentions.0", attention),
        "middle_block.2": Place("mid_block.resnets.1", RES),
        "out.0": Place("conv_norm_out"),
        "out.2": Place("conv_out"),
    }
    for ours, theirs, attends in _unet_blocks(spec):
        places[f"{ours}.0"] = Place(theirs, RESAMPLE if "samplers" in theirs else RES)
        if attends:
            places[f"{ours}.1"] = Place(theirs.replace("resnets", "attentions"), attention)
    for up, level in enumerate(reversed(range(1, len(spec.channel_mult)))):
        last = (up + 1) * (spec.num_res_blocks + 1) - 1
        places[f"output_blocks.{last}.{1 + _attends(spec, level)}"] = Place(f"up_blocks.{up}.upsamplers.0")
    return places


def stage_places(spec: FirstStageSpec) -> dict[str, Place]:
    """Where each module of the first stage is in VQModel and AutoencoderKL."""
    places = {name: Place(name) for name in ("quant_conv", "post_quant_conv", "quantize.embedding")}
    last = len(spec.channel_mult) - 1
    for half, kind, more in (("encoder", "down", 0), ("decoder", "up", 1)):
        places |= {f"{half}.conv_in": Place(f"{half}.conv_in"), f"{half}.conv_out": Place(f"{half}.conv_out")}
        places[f"{half}.norm_out"] = Place(f"{half}.conv_norm_out")
        places[f"{half}.mid.attn_1"] = Place(f"{half}.mid_block.attentions.0", ATTENTION)
        places |= {f"{half}.mid.block_{i + 1}": Place(f"{half}.mid_block.resnets.{i}", RES) for i in range(2)}
        for level in range(last + 1):
            ours, theirs = f"{half}.{kind}.{level}", f"{half}.{kind}_blocks.{last - level if more else level}"
            for i in range(spec.num_res_blocks + more):
                places[f"{ours}.block.{i}"] = Place(f"{theirs}.resnets.{i}", RES)
                places[f"{ours}.attn.{i}"] = Place(f"{theirs}.attentions.{i}", ATTENTION)
            places[f"{ours}.{kind}sample"] = Place(f"{theirs}.{kind}samplers.0")
    return places


def bert_places(spec: TokenConditionerSpec) -> dict[str, Place]:
    """Where each module of the text encoder is in LDMBertModel."""
    places = {
        "transformer.token_emb": Place("model.embed_tokens"),
        "transformer.pos_emb.emb": Place("model.embed_positions"),
        "transformer.norm": Place("model.layer_norm"),
    }
    for number in range(spec.layers):
        theirs = f"model.layers.{number}"
        attention, forward = (f"transformer.attn_layers.layers.{2 * number + i}" for i in range(2))
        places[f"{attention}.0"] = Place(f"{theirs}.self_attn_layer_norm")
        places[f"{forward}.0"] = Place(f"{theirs}.final_layer_norm")
        places |= {f"{attention}.1.to_{name}": Place(f"{theirs}.self_attn.{name}_proj") for name in ("q", "k", "v", "out")}
        places |= {f"{forward}.1.net.0.0": Place(f"{theirs}.fc1"), f"{forward}.1.net.2": Place(f"{theirs}.fc2")}
    return places


def _unet_blocks(spec: OpenAIUNetSpec) -> Iterator[tuple[str, str, bool]]:
    """Each block's name here, in diffusers, and whether it attends. Upsampling is no block of its own."""
    levels, number = len(spec.channel_mult), 1
    for level in range(levels):
        for i in range(spec.num_res_blocks):
            yield f"input_blocks.{number + i}", f"down_blocks.{level}.resnets.{i}", _attends(spec, level)
        number += spec.num_res_blocks + 1
        yield f"input_blocks.{number - 1}", f"down_blocks.{level}.downsamplers.0", False
    number = 0
    for level in reversed(range(levels)):
        for i in range(spec.num_res_blocks + 1):
            yield f"output_blocks.{number}", f"up_blocks.{levels - 1 - level}.resnets.{i}", _attends(spec, level)
            number += 1


def _attends(spec: OpenAIUNetSpec, level: int) -> bool:
    return 1 << level in spec.attention_factors


def _present(key: str) -> str:
    """A key as diffusers has it now."""
    if ".attentions." in key and ".transformer_blocks." not in key:
        for former, now in FORMER.items():
            key = key.replace(former, now)
    return key


def _sources(key: str, places: Places) -> tuple[str, ...]:
    """The keys in diffusers that a key here is made of: one, or those of q, k and v."""
    words = key.split(".")
    ours = next(name for n in range(len(words) - 1, 0, -1) if (name := ".".join(words[:n])) in places)
    place, leaf = places[ours], words[-1]
    inner = ".".join(words[len(ours.split(".")) : -1])
    if inner == "qkv":
        return tuple(f"{place.name}.{name}.{leaf}" for name in QKV)
    return (".".join(word for word in (place.name, place.parts.get(inner, inner), leaf) if word),)


def _shape(found: torch.Tensor | None, ours: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """The shape that a tensor in diffusers must have: ours but for convolutions of 1 x 1, which may be matrices."""
    shape = (ours[0] // parts, *ours[1:])
    matrix = shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape
    return shape if found is None or tuple(found.shape) != matrix else matrix


def _merged(qkv: list[torch.Tensor], width: int) -> torch.Tensor:
    """Rows of q, k and v as one matrix that is split by heads first: [heads, (q k v), width]."""
    rows = [part.reshape(-1, width, *part.shape[1:]) for part in qkv]
    return torch.cat(rows, dim=1).flatten(0, 1)


def _split(merged: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
    """The inverse of `_merged`."""
    return merged.reshape(-1, len(QKV), width, *merged.shape[1:]).unbind(1)
