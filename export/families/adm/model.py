"""A checkpoint of improved- or guided-diffusion from its keys to a model with weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import ArgumentError, CheckpointError
from export.families.adm.architecture import Architecture, Options, infer
from export.families.adm.classifier import FoundClassifier, read_classifier
from export.families.adm.graphs import roles, times_of
from export.families.adm.keys import claims as claims_keys
from export.families.adm.keys import is_classifier, read_shape
from export.families.adm.pipeline import inputs, pipeline
from export.families.adm.published import SCALES, identify
from export.families.base import Model, Source, options_of
from export.guides import with_guides
from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import AttentionBlock, OpenAIUNet
from export.models.unset import Unset
from export.read.checkpoint import Checkpoint, as_float32, stored_as
from export.read.parts import require
from export.read.schedule import describe as describe_schedule
from export.read.wrappers import see_through

NAME = "adm"
TRAINED = re.compile(r"model\d+")  # the reference's files: model010000.pt beside ema_0.9999_010000.pt


def claims(checkpoint: Checkpoint) -> bool:
    """Whether the keys are those of a UNet of this family, or of a classifier that guides one."""
    return claims_keys(checkpoint.tensors)


def recognise(checkpoint: Checkpoint, other: Path | None, weights: str, options: Mapping[str, Any]) -> Found:
    """The model in a checkpoint, by its shapes and, where they are no published model's, by what was said of it."""
    said = options_of(Options, options, NAME)
    if other is not None:
        raise ArgumentError(f"--vae: found {other}, expected none: a guided diffusion model has no VAE")
    path = checkpoint.path
    if is_classifier(checkpoint.tensors):
        raise CheckpointError(
            f"{path}: found a classifier, which guides a diffusion model, expected the diffusion model itself, such as "
            f"64x64_diffusion.pt; build that with --guide {path.name}"
        )
    keys = see_through(checkpoint.tensors, path)
    shape = read_shape(keys.tensors, path)
    with torch.device("meta"), Unset():
        expected = {key: tuple(value.shape) for key, value in OpenAIUNet(_any_heads(shape)).state_dict().items()}
    require(keys.tensors, expected, path, keys.prefix("time_embed.").removesuffix("time_embed."), f"a {describe(shape)}")
    kind = "online" if TRAINED.fullmatch(path.stem) else weights
    architecture = infer(shape, path, said)
    guide = _guide(architecture, said)
    source = Source(checkpoint, None if guide is None else guide.checkpoint, kind)
    scale = said.guide_scale if said.guide_scale is not None else SCALES.get(identify(shape) or "", 1.0)
    return Found(source, name_of(path, said), architecture, keys.tensors, guide, scale)


def _guide(of: Architecture, said: Options) -> FoundClassifier | None:
    """The classifier that guides, where there is one."""
    others = ("guide_scale", "guide_heads", "guide_head_channels", "guide_depth")
    if not said.guide:
        if given := next((name for name in others if getattr(said, name) is not None), None):
            flag = given.replace("_", "-")
            raise ArgumentError(f"--{flag}: found it without --guide, expected a classifier's file beside it")
        return None
    if len(said.guide) > 1:
        raise ArgumentError(f"--guide: found {len(said.guide)} files, expected one: experts by timestep are not read yet")
    return read_classifier(said.guide[0], of, said)


def _any_heads(shape: OpenAIUNetSpec) -> OpenAIUNetSpec:
    return dataclasses.replace(shape, num_heads=1)


def describe(spec: OpenAIUNetSpec) -> str:
    """A UNet in a few words."""
    mults = ",".join(f"{mult:g}" for mult in spec.channel_mult)
    resampling = "residual blocks" if spec.resample_blocks else "convolutions"
    labels = "" if spec.classes is None else f", {spec.classes} classes"
    blocks = f"{spec.num_res_blocks} blocks a level"
    return f"UNet of {spec.model_channels} channels x {mults}, {blocks}{labels}, resampled by {resampling}"


def name_of(path: Path, said: Options) -> str:
    """The name that was given, or the file's, as far as a name may have its letters."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in said.name or path.stem).strip(".-")
    return clean[:80] or "model"


@dataclass(frozen=True)
class Found:
    """A guided diffusion model whose architecture is settled. A `Recognised`."""

    source: Source
    name: str
    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]
    guide: FoundClassifier | None = None
    guide_scale: float = 1.0

    def network(self) -> OpenAIUNet:
        """The UNet with its weights, in evaluation mode."""
        spec = self.architecture.unet
        with torch.device("meta"), Unset():
            unet = OpenAIUNet(spec)
        state = as_float32(self.tensors, self.source.checkpoint.path)
        for key in ("out.2.weight", "out.2.bias"):  # shorter where the variance is left out
            state[key] = state[key][: spec.out_channels].clone()
        if self.architecture.new_order:
            state |= _legacy_order(unet, state)
        unet.load_state_dict(state, assign=True)
        return unet.eval().requires_grad_(False)

    def load(self) -> Model:
        """The model with its weights."""
        of = self.architecture
        graphs = roles(of, self.network())
        model = Model(
            family=NAME,
            name=self.name,
            roles=graphs,
            inputs=inputs(graphs),
            pipeline=pipeline(of),
            schedule=of.schedule,
            prediction=of.prediction,
            variance=of.variance,
            defaults=of.defaults,
            architecture={
                "unet": dataclasses.asdict(of.unet),
                "attention_order": "new" if of.new_order else "legacy",
                "rescale_timesteps": of.rescale,
            },
            notes=self.notes(),
            step_bound=0.025,  # of deep networks with random weights, as latent diffusion's
        )
        if self.guide is None:
            return model
        return with_guides(model, [self.guide.guide(of, times_of(of))], scale=self.guide_scale)

    def notes(self) -> tuple[str, ...]:
        """What a user should know who asks later why the images are what they are."""
        checkpoint = self.source.checkpoint
        trained = [
            f"{checkpoint.path.name} is what the reference calls the trained weights; their moving average, which it "
            "samples from, is a file of its own, ema_*.pt"
        ]
        trained = trained if TRAINED.fullmatch(checkpoint.path.stem) else []
        guide = () if self.guide is None else self.guide.notes
        return (*checkpoint.notes, *stored_as(self.tensors), *trained, *self.architecture.notes, *guide)

    def lines(self) -> dict[str, str]:
        """What was inferred, each line with where it came from."""
        of, origins = self.architecture, self.architecture.origins
        spec, chosen = of.unet, ("method", "steps", "spacing")
        heads = str(spec.num_heads) if spec.num_heads is not None else f"{spec.num_head_channels} channels each"
        order = "new" if of.new_order else "legacy"
        attention = ", ".join(str(of.size[0] // factor) for factor in spec.attention_factors)
        schedule = describe_schedule(of.schedule) + (", timesteps rescaled to 1000" if of.rescale else "")
        learned = "learned" if spec.learned_variance else "none learned"
        recorded = ", ".join(f"{key} {of.defaults[key]}" for key in chosen if of.defaults[key])
        lines = {
            "name": (self.name, "the file's name or --name"),
            "weights": (self.source.weights, "the only network in the file"),
            "model": (describe(spec), "weights"),
            "images": (" x ".join(map(str, of.size)), origins["image size"]),
            "attention": (f"at {attention or 'the middle only'}{' and the middle' if attention else ''}", "weights"),
            "heads": (f"{heads}, {order} order", f"{origins['heads']}; {origins['attention order']}"),
            "schedule": (schedule, origins["noise schedule"]),
            "prediction": (of.prediction, "the reference's default; --prediction"),
            "variance": (f"{learned}, {of.variance} recorded", "weights"),
            "defaults": (recorded, "the reference or --respacing"),
        }
        if of.small is not None:
            lines["enlarges"] = (" x ".join(map(str, of.small)), origins["small size"])
        if self.guide is not None:
            guide, named = self.guide.spec, self.guide.published or "its weights"
            what = f"{describe(guide.unet)}, {guide.classes} classes, {guide.pool} pool; scale {self.guide_scale:g}"
            lines["guide"] = (what, named)
        return {key: f"{value}  [{origin}]" for key, (value, origin) in lines.items()}


def _legacy_order(unet: OpenAIUNet, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices [(q k v), head, channel] of the new order as those of the modules, [head, (q k v), channel]."""
    moved = {}
    for name, module in unet.named_modules():
        if isinstance(module, AttentionBlock):
            for key in (f"{name}.qkv.weight", f"{name}.qkv.bias"):
                parts = state[key].unflatten(0, (3, module.heads, -1)).transpose(0, 1)
                moved[key] = parts.flatten(0, 2).contiguous()
    return moved
