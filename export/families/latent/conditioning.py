"""The conditioner of a latent diffusion model, from `cond_stage_config` and the keys around it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import CheckpointError
from export.families.latent.fields import Section
from export.models.latent.spec import (
    ClassConditionerSpec,
    Conditioner,
    FirstStageSpec,
    ImageConditionerSpec,
    InpaintConditionerSpec,
    RescalerConditionerSpec,
    TokenConditionerSpec,
)
from export.models.openai.spec import OpenAIUNetSpec

FIRST_STAGE, UNCONDITIONAL = "__is_first_stage__", "__is_unconditional__"
MODULES = "ldm.modules.encoders.modules."
CLASSES, TOKENS, PLAIN_TOKENS, RESCALER, IDENTITY = (
    f"{MODULES}ClassEmbedder", f"{MODULES}BERTEmbedder", f"{MODULES}TransformerEmbedder", f"{MODULES}SpatialRescaler",
    "torch.nn.Identity",
)  # fmt: skip
TARGETS = (CLASSES, TOKENS, PLAIN_TOKENS, RESCALER, IDENTITY)
# Labels of the published model that has one more than ImageNet's, cin256-v2: the last one stands for none of them.
WITH_NULL = 1001
BERT_WORDS = 30522  # of bert-base-uncased
MAX_WIDTH, MAX_COUNT = 1 << 16, 1 << 24


@dataclass(frozen=True)
class Stages:
    """The networks on either side of the condition."""

    unet: OpenAIUNetSpec
    stage: FirstStageSpec


@dataclass(frozen=True)
class Conditioning:
    """What makes the condition, how it reaches the network, and whether its tokens are those of bert-base-uncased."""

    spec: Conditioner | None
    key: str | None
    tokenizer: bool = False


def read_conditioner(model: Section, stages: Stages) -> Conditioning:
    """The conditioner that `model.params` describes; CheckpointError where it does not fit the networks."""
    concat = model.flag("concat_mode", True)
    told = model.raw("conditioning_key")
    key = told if told is not None else "concat" if concat else "crossattn"
    keyed = model.raw("cond_stage_key")
    target = model.raw("cond_stage_config")
    if target == UNCONDITIONAL:  # whatever the keys say
        return _fitting(model, Conditioning(None, None), stages)
    if key not in ("concat", "crossattn"):
        raise model.refuse("conditioning_key", key, "concat or crossattn", "a model of another kind is not supported")
    if target == FIRST_STAGE:
        if keyed != "masked_image":
            raise model.refuse(
                "cond_stage_key", keyed, f"masked_image beside {FIRST_STAGE}", "only inpainting is supported of this kind"
            )
        return _fitting(model, Conditioning(InpaintConditionerSpec(stages.stage), key), stages)
    if isinstance(target, str) or target is None:
        raise model.refuse("cond_stage_config", target, f"{UNCONDITIONAL}, {FIRST_STAGE} or a target with params")
    outer = Section(model.path, f"{model.name}.cond_stage_config", target)
    kind = outer.raw("target")
    if kind not in TARGETS:
        why = "CLIP's encoders" if "clip" in str(kind).lower() else "others"
        cure = f"{why} cannot be built: choose a model with one of these"
        raise outer.refuse("target", kind, f"one of {', '.join(TARGETS)}", cure)
    params = outer.part("params") if outer.has("params") else Section(model.path, f"{outer.name}.params", {})
    found = _of_target(kind, params, key, keyed, stages)
    params.done()
    return _fitting(model, found, stages)


def _of_target(kind: str, p: Section, key: str, keyed: object, stages: Stages) -> Conditioning:
    if kind == CLASSES:
        p.ignore(("key", "ucg_rate"))
        classes = p.integer("n_classes", 1, MAX_COUNT, 1000)
        null = classes - 1 if classes == WITH_NULL else None
        return Conditioning(ClassConditionerSpec(classes, p.integer("embed_dim", 1, MAX_WIDTH), null), key)
    if kind in (TOKENS, PLAIN_TOKENS):
        p.ignore(("device", "embedding_dropout"))
        spec = TokenConditionerSpec(
            vocabulary=p.integer("vocab_size", 1, MAX_COUNT, BERT_WORDS if kind == TOKENS else None),
            length=p.integer("max_seq_len", 1, 4096, 77),
            width=p.integer("n_embed", 1, MAX_WIDTH),
            layers=p.integer("n_layer", 1, 256),
        )
        tokenizer = kind == TOKENS and p.flag("use_tokenizer", True)
        return Conditioning(spec, key, tokenizer and spec.vocabulary == BERT_WORDS)
    if kind == RESCALER:
        if keyed != "segmentation":
            raise p.refuse("cond_stage_key", keyed, "segmentation", "a rescaler of images is not supported")
        for name, plain in (("method", "bilinear"), ("multiplier", 0.5), ("bias", False)):
            p.only(name, plain)
        halvings = p.integer("n_stages", 0, 12, 1)
        channels = p.integer("out_channels", 1, MAX_WIDTH) if p.has("out_channels") else None
        p.ignore(("out_channels",))
        factor = stages.stage.factor
        if 1 << halvings != factor:
            raise p.refuse("n_stages", halvings, f"halvings that leave a label map {factor} times smaller, as latents are")
        return Conditioning(RescalerConditionerSpec(p.integer("in_channels", 1, MAX_WIDTH, 3), halvings, channels), key)
    if key == "crossattn":
        raise CheckpointError(
            f"{p.path}: found {kind} with conditioning_key crossattn, whose context is made elsewhere (that of rdm768 by "
            f"CLIP), expected {CLASSES}, {TOKENS} or {PLAIN_TOKENS}; choose a model with one of these inside"
        )
    return Conditioning(ImageConditionerSpec(max(1, stages.unet.in_channels - stages.unet.out_channels)), key)


def _fitting(model: Section, found: Conditioning, stages: Stages) -> Conditioning:
    """Refuse a condition that the network has no place for."""
    unet, spec = stages.unet, found.spec
    attended = spec.width if isinstance(spec, (ClassConditionerSpec, TokenConditionerSpec)) else None
    if (found.key == "crossattn") != (attended is not None) and spec is not None:
        raise CheckpointError(
            f"{model.path}: found {type(spec).__name__.removesuffix('Spec')} with conditioning_key {found.key}, expected "
            f"{'concat' if attended is None else 'crossattn'} for it; correct the configuration"
        )
    if unet.context_dim != attended:
        raise CheckpointError(
            f"{model.path}: found a network with context_dim {unet.context_dim} and a condition of "
            f"{attended or 'no'} context, expected both to agree; correct unet_config or cond_stage_config"
        )
    channels = unet.out_channels + _concatenated(spec)
    if unet.in_channels != channels:
        raise CheckpointError(
            f"{model.path}: found a network of {unet.in_channels} input channels, expected {channels}: {unet.out_channels} "
            f"of the latent and {channels - unet.out_channels} of the condition; correct unet_config or cond_stage_config"
        )
    return found


def _concatenated(spec: Conditioner | None) -> int:
    """The channels of a condition that is concatenated."""
    if isinstance(spec, InpaintConditionerSpec):
        return spec.stage.embed_dim + 1
    if isinstance(spec, RescalerConditionerSpec):
        return spec.channels or spec.classes
    return spec.channels if isinstance(spec, ImageConditionerSpec) else 0
