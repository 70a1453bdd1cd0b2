"""The configuration of a latent diffusion model (the YAML beside a CompVis checkpoint) as its architecture and schedule.

Weights tell widths and depths but neither heads nor schedule nor scale: the YAML is what says them. Defaults are those of
the reference, CompVis/latent-diffusion, for what a YAML leaves out.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from engine.bundle.limits import MAX_T
from engine.bundle.training import RECIPES, ScheduleSpec
from engine.errors import CheckpointError
from export.families.latent.conditioning import Stages, read_conditioner
from export.families.latent.fields import Section, read_yaml
from export.models.latent.spec import ClassConditionerSpec, FirstStageSpec, LatentSpec
from export.models.openai.spec import OpenAIUNetSpec
from export.models.unet import NORM_GROUPS
from export.read.schedule import COSINE

MODEL = "ldm.models.diffusion.ddpm.LatentDiffusion"
UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
VQ, KL = "ldm.models.autoencoder.VQModelInterface", "ldm.models.autoencoder.AutoencoderKL"
# Of the reference, recipe by name: its linear is linear in the square root of beta, its sqrt_linear in beta.
SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine"}
PREDICTIONS = ("eps", "x0", "v")
MAX_WIDTH, MAX_SIDE, MAX_BLOCKS, MAX_SCALE = 1 << 16, 1 << 14, 16, 1e6
# What the reference's training reads and its network, process and sampling do not.
TRAINING = (
    "num_timesteps_cond", "log_every_t", "first_stage_key", "cond_stage_trainable", "monitor", "loss_type",
    "scheduler_config", "ckpt_path", "ignore_keys", "load_only_unet", "l_simple_weight", "original_elbo_weight",
    "learn_logvar", "logvar_init", "clip_denoised", "make_it_fit", "ucg_training", "base_learning_rate",
)  # fmt: skip
STAGE_TRAINING = (
    "lossconfig", "monitor", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "batch_resize_range",
    "scheduler_config", "lr_g_factor", "use_ema", "sane_index_shape",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A model but for its weights.

    spec       the networks; its scale is 1 where `scale_by_std`: the weights have it then
    schedule   of the training
    use_ema    whether training kept a moving average, which is what the reference samples with
    tokenizer  whether tokens are those of bert-base-uncased
    origin     where it is from, for messages
    """

    spec: LatentSpec
    schedule: ScheduleSpec
    use_ema: bool
    scale_by_std: bool
    tokenizer: bool
    origin: str = field(compare=False)


def read_config(path: str | os.PathLike[str]) -> Config:
    """The model that a YAML describes; CheckpointError for one that is no latent diffusion model of the reference's kind."""
    path = Path(path)
    content = read_yaml(path)
    if "model" not in content:
        raise CheckpointError(
            f"{path}: found the fields {', '.join(str(key)[:40] for key in list(content)[:4])}, expected model: first; give "
            "the configuration that the model was trained with"
        )
    outer = Section(path, "model", content["model"])
    outer.choice("target", (MODEL,))
    model = outer.part("params")
    return _config(model)


def with_null(config: Config, label: int) -> Config:
    """The configuration of a class-conditional model whose label for no class is this one."""
    known = config.spec.conditioner
    if not isinstance(known, ClassConditionerSpec):
        raise CheckpointError(
            f"{config.origin}: found a null label for a model without classes, expected none; leave --null-label out"
        )
    if not 0 <= label < known.classes:
        raise CheckpointError(
            f"{config.origin}: found the null label {label}, expected one of 0 to {known.classes - 1}; correct --null-label"
        )
    spec = dataclasses.replace(config.spec, conditioner=dataclasses.replace(known, null=label))
    return dataclasses.replace(config, spec=spec)


def _config(model: Section) -> Config:
    channels = model.integer("channels", 1, MAX_WIDTH, 3)
    size = model.integer("image_size", 1, MAX_SIDE, 256)
    unet, stage = _unet(model.part("unet_config")), _stage(model.part("first_stage_config"))
    if not unet.out_channels == stage.embed_dim == channels:
        raise CheckpointError(
            f"{model.path}: found {channels} channels, a network that predicts {unet.out_channels} and a first stage of "
            f"{stage.embed_dim}, expected one number; correct the configuration"
        )
    halvings = len(unet.channel_mult) - 1
    if size % (1 << halvings):
        raise model.refuse("image_size", size, f"a multiple of {1 << halvings} (the network halves it {halvings} times)")
    conditioning = read_conditioner(model, Stages(unet, stage))
    schedule = _schedule(model)
    scale_by_std = model.flag("scale_by_std", False)
    scale = model.number("scale_factor", 1 / MAX_SCALE, MAX_SCALE, 1.0)
    prediction = model.choice("parameterization", PREDICTIONS, "eps")
    use_ema = model.flag("use_ema", True)
    for key in ("v_posterior", "cond_stage_forward", "use_positional_encodings", "given_betas"):
        model.only(key, 0, 0.0, False)
    model.ignore(TRAINING)
    model.done()
    return Config(
        spec=LatentSpec(unet, stage, conditioning.spec, (channels, size, size), prediction, 1.0 if scale_by_std else scale),
        schedule=schedule,
        use_ema=use_ema,
        scale_by_std=scale_by_std,
        tokenizer=conditioning.tokenizer,
        origin=str(model.path),
    )


def _schedule(model: Section) -> ScheduleSpec:
    recipe = SCHEDULES[model.choice("beta_schedule", SCHEDULES, "linear")]
    T = model.integer("timesteps", 1, MAX_T, 1000)
    low, high = RECIPES["linear"]["start"]
    start, end = model.number("linear_start", low, high, 1e-4), model.number("linear_end", low, high, 2e-2)
    s = model.number("cosine_s", 0.0, 1.0, COSINE["s"])
    if recipe == "cosine":
        return ScheduleSpec(recipe, T, {**COSINE, "s": s}, None)
    if end < start:
        raise model.refuse("linear_end", end, f"at least linear_start = {start:g}")
    return ScheduleSpec(recipe, T, {"start": start, "end": end}, None)


def _unet(outer: Section) -> OpenAIUNetSpec:
    outer.choice("target", (UNET,))
    p = outer.part("params")
    for key, plain in (
        ("dims", 2), ("conv_resample", True), ("num_classes", None), ("n_embed", None), ("use_new_attention_order", False),
        ("num_heads_upsample", -1), ("use_linear_in_transformer", False), ("disable_self_attentions", None),
        ("num_attention_blocks", None), ("disable_middle_self_attn", False), ("adm_in_channels", None),
    ):  # fmt: skip
        p.only(key, plain)
    # `legacy` and precision change nothing that weights or outputs show; image_size is not used by the network.
    p.ignore(("image_size", "dropout", "use_checkpoint", "use_fp16", "use_bf16", "legacy"))
    transformer = p.flag("use_spatial_transformer", False)
    heads, width = _heads(p, "num_heads"), _heads(p, "num_head_channels")
    spec = OpenAIUNetSpec(
        in_channels=p.integer("in_channels", 1, MAX_WIDTH),
        out_channels=p.integer("out_channels", 1, MAX_WIDTH),
        model_channels=p.integer("model_channels", 1, MAX_WIDTH),
        channel_mult=p.integers("channel_mult", 1, 64, 1, (1, 2, 4, 8)),
        num_res_blocks=p.integer("num_res_blocks", 1, MAX_BLOCKS),
        attention_factors=p.integers("attention_resolutions", 1, MAX_SIDE),
        num_heads=None if width else heads,
        num_head_channels=width,
        context_dim=p.integer("context_dim", 1, MAX_WIDTH) if transformer else None,
        depth=p.integer("transformer_depth", 1, MAX_BLOCKS, 1),
        scale_shift=p.flag("use_scale_shift_norm", False),
        resample_blocks=p.flag("resblock_updown", False),
    )
    p.only("context_dim", None)  # without a transformer, which the reference refuses, too
    p.done()
    check_widths(p, "model_channels", spec.model_channels, spec.channel_mult)
    check_heads(p, spec)
    return spec


def _heads(p: Section, key: str) -> int | None:
    """A count; -1 and absence say none."""
    found = p.integer(key, -1, MAX_WIDTH, -1)
    if found == 0:
        raise p.refuse(key, found, "1 or more, or -1 where the other of num_heads and num_head_channels decides")
    return None if found == -1 else found


def check_widths(p: Section, key: str, base: int, mults: tuple[float, ...]) -> None:
    """Refuse widths that group normalisation does not take, and maps halved more often than any has rows."""
    if any(base * mult % NORM_GROUPS for mult in (1, *mults)) or base * max(mults) > MAX_WIDTH or len(mults) > 8:
        raise p.refuse(key, base, f"a multiple of {NORM_GROUPS} at up to 8 levels of at most {MAX_WIDTH} channels each")


def check_heads(p: Section, spec: OpenAIUNetSpec) -> None:
    """Refuse heads that some level with attention cannot be split into."""
    levels = [level for level in range(len(spec.channel_mult)) if 1 << level in spec.attention_factors]
    by = spec.num_head_channels or spec.num_heads
    if by is None:
        raise p.refuse("num_heads", None, "num_heads or num_head_channels: weights do not tell either")
    for level in {*levels, len(spec.channel_mult) - 1}:
        width = spec.widths[level]
        if width % by:
            key = "num_head_channels" if spec.num_head_channels else "num_heads"
            raise p.refuse(key, by, f"a divisor of {width}, the channels at level {level}")


def _stage(outer: Section) -> FirstStageSpec:
    target = outer.choice("target", (VQ, KL))
    p = outer.part("params")
    dd = p.part("ddconfig")
    p.ignore(STAGE_TRAINING)
    p.only("remap", None)
    double = dd.flag("double_z", True)
    if double != (target == KL):
        raise dd.refuse("double_z", double, f"{str(not double).lower()} for {target.rpartition('.')[2]}")
    for key, plain in (
        ("resamp_with_conv", True), ("use_linear_attn", False), ("tanh_out", False), ("give_pre_end", False),
    ):  # fmt: skip
        dd.only(key, plain)
    dd.ignore(("dropout",))
    spec = FirstStageSpec(
        in_channels=dd.integer("in_channels", 1, 64),
        out_channels=dd.integer("out_ch", 1, 64),
        channels=dd.integer("ch", 1, MAX_WIDTH),
        channel_mult=dd.integers("ch_mult", 1, 64, 1, (1, 2, 4, 8)),
        num_res_blocks=dd.integer("num_res_blocks", 1, MAX_BLOCKS),
        attn_resolutions=dd.integers("attn_resolutions", 1, MAX_SIDE),
        resolution=dd.integer("resolution", 1, MAX_SIDE),
        z_channels=dd.integer("z_channels", 1, MAX_WIDTH),
        embed_dim=p.integer("embed_dim", 1, MAX_WIDTH),
        codes=p.integer("n_embed", 2, 1 << 24) if target == VQ else None,
        attention=dd.choice("attn_type", ("vanilla", "none"), "vanilla") == "vanilla",
    )
    dd.done()
    p.done()
    check_widths(dd, "ch", spec.channels, spec.channel_mult)
    return spec


def describe(spec: LatentSpec) -> str:
    """A model in a few words, for people."""
    unet, stage = spec.unet, spec.stage
    kind = "KL" if stage.codes is None else f"VQ with {stage.codes} codes"
    mults = ",".join(map(str, unet.channel_mult))
    return f"a network of {unet.model_channels} channels x {mults} and a first stage {kind} of factor {stage.factor}"


