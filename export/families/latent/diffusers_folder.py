"""A latent diffusion model as a folder of diffusers: each network with its config.json, and the scheduler's configuration.

The converted models of the reference have this form (CompVis/ldm-celebahq-256, ldm-super-resolution-4x-openimages,
ldm-text2im-large-256). diffusers itself is not needed; names of classes are only compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.bundle.limits import MAX_T
from engine.bundle.training import RECIPES, ScheduleSpec
from engine.errors import CheckpointError
from export.families.latent.conditioning import BERT_WORDS
from export.families.latent.config import MAX_BLOCKS, MAX_SCALE, MAX_SIDE, MAX_WIDTH, Config, check_heads, check_widths
from export.families.latent.diffusers_keys import bert_places, stage_places, translated, unet_places
from export.families.latent.fields import Section, read_json
from export.families.latent.weights import Weights, expected
from export.models.latent.spec import (
    Conditioner,
    FirstStageSpec,
    ImageConditionerSpec,
    LatentSpec,
    TokenConditionerSpec,
)
from export.models.openai.spec import OpenAIUNetSpec
from export.read.candidates import ROOT
from export.read.checkpoint import Checkpoint, Selection, read_checkpoint, stored_as
from export.read.schedule import COSINE

INDEX = "model_index.json"
PLAIN, UPSCALER, TEXT = "LDMPipeline", "LDMSuperResolutionPipeline", "LDMTextToImagePipeline"
KINDS = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"), "vqvae": ("VQModel", "AutoencoderKL"), "bert": ("LDMBertModel",),
    "scheduler": ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler"),
}  # fmt: skip
PIPELINES = {PLAIN: ("unet", "vqvae"), UPSCALER: ("unet", "vqvae"), TEXT: ("unet", "vqvae", "bert")}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
FILES = tuple(
    f"{stem}{suffix}"
    for suffix in (".safetensors", ".safetensors.index.json", ".bin")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
)
# Scales of first stages whose configuration has none: it is older than the field, when pipelines had them in their code.
SCALES = {"VQModel": 1.0, "AutoencoderKL": 0.18215}
UNETS = {
    "UNet2DModel": ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D", "UNetMidBlock2D"),
    "UNet2DConditionModel": (
        "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn",
    ),
}  # fmt: skip
STAGES = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")
# The only value that the networks here have of each field, where it is not also what another field says.
UNET_ONLY: dict[str, tuple[object, ...]] = {
    "center_input_sample": (False,), "flip_sin_to_cos": (True,), "freq_shift": (0,), "only_cross_attention": (False,),
    "downsample_padding": (1,), "mid_block_scale_factor": (1, 1.0), "act_fn": ("silu",), "norm_num_groups": (32,),
    "norm_eps": (1e-5,), "encoder_hid_dim": (), "encoder_hid_dim_type": (), "dual_cross_attention": (False,),
    "use_linear_projection": (False,), "class_embed_type": (), "addition_embed_type": (), "num_class_embeds": (),
    "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1, 1.0), "time_embedding_type": ("positional",),
    "time_embedding_dim": (), "time_embedding_act_fn": (), "timestep_post_act": (), "time_cond_proj_dim": (),
    "conv_in_kernel": (3,), "conv_out_kernel": (3,), "projection_class_embeddings_input_dim": (),
    "attention_type": ("default",), "class_embeddings_concat": (False,), "mid_block_only_cross_attention": (False,),
    "cross_attention_norm": (), "downsample_type": ("conv",), "upsample_type": ("conv",), "attn_norm_num_groups": (32,),
    "add_attention": (True,), "reverse_transformer_layers_per_block": (),
}  # fmt: skip
UNET_IGNORED = ("dropout", "upcast_attention", "num_train_timesteps", "addition_embed_type_num_heads")
STAGE_ONLY: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu",), "norm_num_groups": (32,), "norm_type": ("group",), "lookup_from_codebook": (False,),
    "shift_factor": (), "latents_mean": (), "latents_std": (), "use_quant_conv": (True,), "use_post_quant_conv": (True,),
}  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """What a folder holds: the model, its weights, and the files they are from, by the name of the network."""

    config: Config
    weights: Weights
    files: dict[str, Checkpoint]


def is_folder(path: Path) -> bool:
    """Whether this is a folder of diffusers."""
    return (path / INDEX).is_file()


def read_folder(path: Path) -> Folder:
    """The model in a folder of diffusers; CheckpointError for one of another kind, or whose weights are not as it says."""
    index = Section(path / INDEX, INDEX, read_json(path / INDEX))
    pipeline = index.choice("_class_name", tuple(PIPELINES))
    parts = {name: _part(path, index, name) for name in (*PIPELINES[pipeline], "scheduler")}
    unet, size = _unet(*parts["unet"])
    stage, scale = _stage(*parts["vqvae"], size)
    conditioner: Conditioner | None = None
    if pipeline == TEXT:
        conditioner = _bert(parts["bert"][1])
    elif pipeline == UPSCALER:
        conditioner = ImageConditionerSpec(max(1, unet.in_channels - unet.out_channels))
    schedule, prediction = _scheduler(parts["scheduler"][1])
    _check_fit(path, unet, stage, conditioner)
    latent = (stage.embed_dim, *size)
    # The upscaling pipeline decodes latents as they are, whatever the first stage says.
    spec = LatentSpec(unet, stage, conditioner, latent, prediction, 1.0 if pipeline == UPSCALER else scale)
    tokenizer = isinstance(conditioner, TokenConditionerSpec) and conditioner.vocabulary == BERT_WORDS
    config = Config(spec, schedule, False, False, tokenizer and index.has("tokenizer"), str(path / INDEX))
    files = {name: _weights(path / name) for name in PIPELINES[pipeline]}
    return Folder(config, _translated(files, spec), files)


def _part(path: Path, index: Section, name: str) -> tuple[str, Section]:
    """The class of a part of the pipeline, one that is known, and its configuration."""
    entry = index.raw(name)
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    if kind not in KINDS[name]:
        raise index.refuse(name, entry, f"[library, {' or '.join(KINDS[name])}]", "a part of another kind is not supported")
    file = path / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    return str(kind), Section(file, file.name, read_json(file))


def _unet(kind: str, p: Section) -> tuple[OpenAIUNetSpec, tuple[int, int]]:
    """The denoiser and the size of its latents."""
    plain_down, down, plain_up, up, middle = UNETS[kind]
    scale_shift = p.choice("resnet_time_scale_shift", ("default", "scale_shift"), "default") == "scale_shift"
    crossed = kind == "UNet2DConditionModel"
    if scale_shift and not crossed and not p.has("attn_norm_num_groups"):
        raise p.refuse(
            "attn_norm_num_groups", None, "32 with scale_shift, or else the middle attends without a norm",
            "a model of another kind is not supported",
        )  # fmt: skip
    for key, values in UNET_ONLY.items():
        p.only(key, *values)
    p.only("mid_block_type", middle)
    p.ignore(UNET_IGNORED)
    base, mults = _widths(p)
    attends = _attends(p, (plain_down, down), (plain_up, up), len(mults))
    heads, width = _heads(p, crossed, [base * mult for mult in mults])
    spec = OpenAIUNetSpec(
        in_channels=p.integer("in_channels", 1, MAX_WIDTH),
        out_channels=p.integer("out_channels", 1, MAX_WIDTH),
        model_channels=base,
        channel_mult=mults,
        num_res_blocks=p.integer("layers_per_block", 1, MAX_BLOCKS, 2),
        attention_factors=tuple(1 << level for level, attention in enumerate(attends) if attention),
        num_heads=heads,
        num_head_channels=width,
        context_dim=p.integer("cross_attention_dim", 1, MAX_WIDTH, 1280) if crossed else None,
        depth=p.integer("transformer_layers_per_block", 1, MAX_BLOCKS, 1) if crossed else 1,
        scale_shift=scale_shift,
    )
    size = _size(p, 1 << (len(mults) - 1))
    _done(p)
    check_heads(p, spec)
    return spec, size


def _stage(kind: str, p: Section, size: tuple[int, int]) -> tuple[FirstStageSpec, float]:
    """The first stage and its scale. Levels attend by the size that maps of the trained images have there."""
    for key, values in STAGE_ONLY.items():
        p.only(key, *values)
    p.ignore(("sample_size", "force_upcast"))
    base, mults = _widths(p)
    attends = _attends(p, STAGES[:2], STAGES[2:], len(mults))
    resolution = max(size) << (len(mults) - 1)
    z = p.integer("latent_channels", 1, MAX_WIDTH, 3 if kind == "VQModel" else 4)
    vq = kind == "VQModel"
    spec = FirstStageSpec(
        in_channels=p.integer("in_channels", 1, 64, 3),
        out_channels=p.integer("out_channels", 1, 64, 3),
        channels=base,
        channel_mult=mults,
        num_res_blocks=p.integer("layers_per_block", 1, MAX_BLOCKS, 1),
        attn_resolutions=tuple(resolution >> level for level, attention in enumerate(attends) if attention),
        resolution=resolution,
        z_channels=z,
        embed_dim=p.integer("vq_embed_dim", 1, MAX_WIDTH, z) if vq else z,
        codes=p.integer("num_vq_embeddings", 2, 1 << 24, 256) if vq else None,
        attention=p.flag("mid_block_add_attention", True),
    )
    scale = p.number("scaling_factor", 1 / MAX_SCALE, MAX_SCALE, SCALES[kind])
    _done(p)
    if any(attends) and not spec.attention:
        raise p.refuse("mid_block_add_attention", False, "true where other blocks attend")
    return spec, scale


def _bert(p: Section) -> TokenConditionerSpec:
    """The text encoder. Beside these fields its file has many of transformers' own, none of which it reads."""
    width = p.integer("d_model", 1, MAX_WIDTH, 1280)
    inner = p.integer("encoder_ffn_dim", 1, MAX_WIDTH, 5120)
    if inner != 4 * width:
        raise p.refuse("encoder_ffn_dim", inner, f"4 times d_model, {4 * width}")
    p.only("activation_function", "gelu")
    p.only("scale_embedding", False)
    return TokenConditionerSpec(
        vocabulary=p.integer("vocab_size", 1, 1 << 24, BERT_WORDS),
        length=p.integer("max_position_embeddings", 1, 4096, 77),
        width=width,
        layers=p.integer("encoder_layers", 1, 256, 32),
        heads=p.integer("encoder_attention_heads", 1, 256, 8),
        head_width=p.integer("head_dim", 1, 1024, 64),
    )


def _scheduler(p: Section) -> tuple[ScheduleSpec, str]:
    """The schedule of the training and what the network predicts; the rest of the file is about sampling."""
    p.only("trained_betas")
    p.only("rescale_betas_zero_snr", False)
    recipe = SCHEDULES[p.choice("beta_schedule", tuple(SCHEDULES), "linear")]
    T = p.integer("num_train_timesteps", 1, MAX_T, 1000)
    prediction = PREDICTIONS[p.choice("prediction_type", tuple(PREDICTIONS), "epsilon")]
    low, high = RECIPES["linear"]["start"]
    start, end = p.number("beta_start", low, high, 1e-4), p.number("beta_end", low, high, 2e-2)
    if recipe == "cosine":
        return ScheduleSpec(recipe, T, dict(COSINE), None), prediction
    if end < start:
        raise p.refuse("beta_end", end, f"at least beta_start = {start:g}")
    return ScheduleSpec(recipe, T, {"start": start, "end": end}, None), prediction


def _widths(p: Section) -> tuple[int, tuple[int, ...]]:
    """The channels of the first level and by how much each level has more."""
    widths = p.integers("block_out_channels", 1, MAX_WIDTH, 1)
    if any(width % widths[0] for width in widths):
        raise p.refuse("block_out_channels", list(widths), f"multiples of the first, {widths[0]}")
    mults = tuple(width // widths[0] for width in widths)
    check_widths(p, "block_out_channels", widths[0], mults)
    return widths[0], mults


def _attends(p: Section, down: tuple[str, ...], up: tuple[str, ...], levels: int) -> list[bool]:
    """Whether each level attends, as both paths must say; `down`, `up`: names of a block without and with attention."""
    found = []
    for key, names in (("down_block_types", down), ("up_block_types", up)):
        types = p.raw(key)
        if not isinstance(types, list) or len(types) != levels or any(name not in names for name in types):
            raise p.refuse(key, types, f"{levels} of {' and '.join(names)}", "blocks of another kind are not supported")
        found.append([name == names[1] for name in types])
    if found[0] != found[1][::-1]:
        raise p.refuse("up_block_types", found[1], "the same levels to attend as down_block_types says")
    return found[0]


def _heads(p: Section, crossed: bool, widths: list[int]) -> tuple[int | None, int | None]:
    """(heads, None), or (None, width of a head). UNet2DConditionModel calls attention_head_dim how many there are."""
    key = "num_attention_heads" if p.has("num_attention_heads") else "attention_head_dim"
    if not crossed:
        p.only("num_attention_heads")
        return (None, p.integer(key, 1, MAX_WIDTH, 8)) if p.has(key) or not p.knows(key) else (1, None)
    many = p.is_list(key)
    listed = p.integers(key, 1, MAX_WIDTH, 1) if many else (p.integer(key, 1, MAX_WIDTH, 8),) * len(widths)
    p.ignore(("num_attention_heads", "attention_head_dim"))
    if len(set(listed)) == 1:
        return listed[0], None
    per_head = {width // heads if width % heads == 0 else 0 for width, heads in zip(widths, listed, strict=False)}
    if len(listed) != len(widths) or len(per_head) > 1 or 0 in per_head:
        raise p.refuse(key, list(listed), "one number of heads, or heads of one width at every level")
    return None, per_head.pop()


def _size(p: Section, multiple: int) -> tuple[int, int]:
    """Height and width of the latents that the network was trained with."""
    key = "sample_size"
    height, width = p.integers(key, 1, MAX_SIDE, 2)[:2] if p.is_list(key) else (p.integer(key, 1, MAX_SIDE),) * 2
    if height % multiple or width % multiple:
        raise p.refuse(key, [height, width], f"multiples of {multiple}")
    return height, width


def _done(p: Section) -> None:
    """Refuse fields that are unknown and set: later versions have more, null where they say nothing, and notes, `_…`."""
    p.drop(lambda key, value: value is None or key.startswith("_"))
    p.done()


def _check_fit(path: Path, unet: OpenAIUNetSpec, stage: FirstStageSpec, conditioner: Conditioner | None) -> None:
    channels = unet.out_channels + (conditioner.channels if isinstance(conditioner, ImageConditionerSpec) else 0)
    width = conditioner.width if isinstance(conditioner, TokenConditionerSpec) else None
    found, wanted = (
        (unet.in_channels, unet.out_channels, unet.context_dim),
        (channels, stage.embed_dim, width),
    )
    if found != wanted:
        raise CheckpointError(
            f"{path}: found a denoiser with (channels in, out, of context) {found}, expected {wanted} beside this first "
            "stage and condition; copy or download the folder again"
        )


def _weights(folder: Path) -> Checkpoint:
    """The tensors of a network, from whichever of the usual files is there."""
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{folder}: found no weights, expected {FILES[0]} or another of diffusers' files; copy or download it again"
        )
    return read_checkpoint(file, Selection(key=ROOT))


def _translated(files: dict[str, Checkpoint], spec: LatentSpec) -> Weights:
    shapes = expected(spec)
    condition: dict[str, torch.Tensor] = {}
    if isinstance(spec.conditioner, TokenConditionerSpec):
        condition = translated(files["bert"], bert_places(spec.conditioner), shapes.conditioner, useless=("to_logits.",))
    width, heads = spec.unet.num_head_channels, spec.unet.num_heads
    return Weights(
        unet=translated(files["unet"], unet_places(spec.unet), shapes.unet, width=width, heads=heads),
        stage=translated(files["vqvae"], stage_places(spec.stage), shapes.stage),
        conditioner=condition,
        scale=spec.scale,
        kind="online",
        notes=tuple(note for checkpoint in files.values() for note in stored_as(checkpoint.tensors)),
    )
