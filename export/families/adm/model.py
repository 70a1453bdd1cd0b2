"""A checkpoint of improved- or guided-diffusion from its keys to a model with weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import ArgumentError, CheckpointError
from export.families.adm.architecture import Architecture, Options, infer
from export.families.adm.graphs import roles, times_of
from export.families.adm.keys import claims as claims_keys
from export.families.adm.keys import is_classifier, read_shape
from export.families.adm.pipeline import inputs, pipeline
from export.families.adm.published import SCALES, identify
from export.families.base import Model, Source, options_of
from export.graphs.roles import Role
from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import AttentionBlock, OpenAIUNet
from export.models.unset import shapes_of, unset
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
    shape, tensors = read_network(checkpoint)
    scale = SCALES.get(identify(shape) or "")
    return Found(source_of(checkpoint, weights), name_of(path, said.name), infer(shape, path, said), tensors, scale)


def read_network(checkpoint: Checkpoint) -> tuple[OpenAIUNetSpec, Mapping[str, torch.Tensor]]:
    """What keys and shapes tell of a UNet, and its weights by its own keys; CheckpointError where any is amiss."""
    path, keys = checkpoint.path, see_through(checkpoint.tensors, checkpoint.path)
    shape = read_shape(keys.tensors, path)
    expected = shapes_of(unset(lambda: OpenAIUNet(_any_heads(shape))))
    require(keys.tensors, expected, path, keys.prefix("time_embed.").removesuffix("time_embed."), f"a {describe(shape)}")
    return shape, keys.tensors


def source_of(checkpoint: Checkpoint, weights: str) -> Source:
    """The file, whose name says whether it is the reference's moving average."""
    return Source(checkpoint, None, "online" if TRAINED.fullmatch(checkpoint.path.stem) else weights)


def _any_heads(shape: OpenAIUNetSpec) -> OpenAIUNetSpec:
    return dataclasses.replace(shape, num_heads=1)


def describe(spec: OpenAIUNetSpec) -> str:
    """A UNet in a few words."""
    mults = ",".join(f"{mult:g}" for mult in spec.channel_mult)
    resampling = "residual blocks" if spec.resample_blocks else "convolutions"
    labels = "" if spec.classes is None else f", {spec.classes} classes"
    labels += "" if spec.map_channels is None else f", label maps of {spec.map_channels} channels"
    blocks = f"{spec.num_res_blocks} blocks a level"
    return f"UNet of {spec.model_channels} channels x {mults}, {blocks}{labels}, resampled by {resampling}"


def name_of(path: Path, said: str | None) -> str:
    """The name that was given, or the file's, as far as a name may have its letters."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in said or path.stem).strip(".-")
    return clean[:80] or "model"


@dataclass(frozen=True)
class Declared:
    """What a bundle of these networks declares, as `Model` has it."""

    family: str
    roles: Mapping[str, Role]
    inputs: Sequence[Mapping[str, Any]]
    pipeline: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A guided diffusion model whose architecture is settled. A `Recognised`."""

    source: Source
    name: str
    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]
    guide_scale: float | None

    def declared(self) -> Declared:
        """What its bundle declares: the graphs, with their weights, and how they are wired."""
        graphs = roles(self.architecture, self.network())
        return Declared(NAME, graphs, inputs(graphs), pipeline(self.architecture))

    def network(self) -> OpenAIUNet:
        """The UNet with its weights, in evaluation mode."""
        spec = self.architecture.unet
        unet = unset(lambda: OpenAIUNet(spec))
        state = as_float32(self.tensors, self.source.checkpoint.path)
        for key in ("out.2.weight", "out.2.bias"):  # shorter where the variance is left out
            state[key] = state[key][: spec.out_channels].clone()
        if self.architecture.new_order:
            state |= _legacy_order(unet, state)
        unet.load_state_dict(state, assign=True)
        return unet.eval().requires_grad_(False)

    def load(self) -> Model:
        """The model with its weights."""
        of, declared = self.architecture, self.declared()
        return Model(
            family=declared.family,
            name=self.name,
            roles=declared.roles,
            inputs=declared.inputs,
            pipeline=declared.pipeline,
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
            rescaled=times_of(of) if of.rescale else None,
            guide_scale=self.guide_scale,
        )

    def notes(self) -> tuple[str, ...]:
        """What a user should know who asks later why the images are what they are."""
        checkpoint = self.source.checkpoint
        trained = [
            f"{checkpoint.path.name} is what the reference calls the trained weights; their moving average, which it "
            "samples from, is a file of its own, ema_*.pt"
        ]
        trained = trained if TRAINED.fullmatch(checkpoint.path.stem) else []
        return (*checkpoint.notes, *stored_as(self.tensors), *trained, *self.architecture.notes)

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
