"""A latent diffusion checkpoint from its keys to a model with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from engine.errors import ArgumentError, CheckpointError
from engine.solver.timesteps import kept_timesteps
from export.families.base import Model, Source, options_of
from export.families.latent.config import Config, describe, read_config, with_null
from export.families.latent.diffusers_folder import is_folder, read_folder
from export.families.latent.graphs import roles
from export.families.latent.pipeline import inputs, pipeline
from export.families.latent.published import identify, published
from export.families.latent.weights import Weights, networks, read_weights
from export.families.latent.weights import claims as claims_keys
from export.models.latent.first_stage import FirstStage
from export.models.latent.spec import ClassConditionerSpec, ImageConditionerSpec, LatentSpec, TokenConditionerSpec
from export.models.openai.unet import OpenAIUNet
from export.read.checkpoint import Checkpoint
from export.read.schedule import describe as describe_schedule

NAME = "latent"
STEPS = 50  # of the reference's own scripts, DDIM
SCALES: dict[type, float] = {ClassConditionerSpec: 3.0, TokenConditionerSpec: 5.0}  # of guidance, likewise
BERT_EMPTY = (101, 102)  # [CLS] [SEP], and [PAD] is 0: the empty text of bert-base-uncased


@dataclass(frozen=True)
class Options:
    """What a user may say of a checkpoint; None is not said.

    config       the YAML beside it;  preset: the name of a published model instead
    size         [height, width] of the images, for one that is to draw others than it was trained on
    null_label   the label that stands for no class;  null_tokens: the ids of the empty text
    """

    config: Path | None = None
    preset: str | None = None
    name: str | None = None
    size: tuple[int, int] | None = None
    null_label: int | None = None
    null_tokens: str | None = None


def claims(checkpoint: Checkpoint) -> bool:
    """Whether the keys are those of a latent diffusion model."""
    return claims_keys(checkpoint.tensors)


def claims_folder(path: Path) -> bool:
    """Whether a folder is a pipeline of diffusers."""
    return is_folder(path)


def recognise(checkpoint: Checkpoint, other: Path | None, weights: str, options: Mapping[str, Any]) -> Found:
    """The model in a checkpoint, by its YAML or, for a published one, by the shapes of its weights."""
    said = options_of(Options, options, NAME)
    if other is not None:
        raise ArgumentError(f"--vae: found {other}, expected none: a latent diffusion checkpoint has its first stage inside")
    name = checkpoint.path.stem
    if said.config is not None:
        config = read_config(said.config)
    elif said.preset is not None:
        config = published(said.preset)
    else:
        name, config = identify(checkpoint)
    if said.null_label is not None:
        config = with_null(config, said.null_label)
    read = read_weights(checkpoint, config, weights)
    return _found(Source(checkpoint, None, read.kind), name, config, read, said)


def recognise_folder(path: Path, options: Mapping[str, Any]) -> Found:
    """The model in a folder of diffusers, which says all that a YAML does."""
    said = options_of(Options, options, NAME)
    for name in ("config", "preset", "null_label"):
        if getattr(said, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ArgumentError(
                f"{flag}: found it beside {path}, expected none: a folder of diffusers has its configuration inside"
            )
    folder = read_folder(path)
    source = Source(folder.files["unet"], folder.files.get("vqvae"), folder.weights.kind)
    return _found(source, path.resolve().name, folder.config, folder.weights, said)


def _found(source: Source, name: str, config: Config, read: Weights, said: Options) -> Found:
    spec = dataclasses.replace(config.spec, scale=read.scale)
    if said.size is not None:
        spec = _resized(spec, *said.size)
    return Found(source, said.name or name, config, spec, read, _null_tokens(config, said))


def _resized(spec: LatentSpec, height: int, width: int) -> LatentSpec:
    step = spec.stage.factor << (len(spec.unet.channel_mult) - 1)
    if height % step or width % step or not height or not width:
        raise ArgumentError(
            f"--size: found {height} {width}, expected multiples of {step}: this model halves images so far"
        )
    return dataclasses.replace(spec, latent=(spec.latent[0], height // spec.stage.factor, width // spec.stage.factor))


def _null_tokens(config: Config, said: Options) -> tuple[int, ...] | None:
    """The ids of the empty text, padded with 0: those that were said, or those of the reference's tokenizer."""
    of = config.spec.conditioner
    if not isinstance(of, TokenConditionerSpec):
        if said.null_tokens is not None:
            raise ArgumentError(f"--null-tokens: found {said.null_tokens!r}, expected none for {describe(config.spec)}")
        return None
    if said.null_tokens is None:
        return (BERT_EMPTY + (0,) * of.length)[: of.length] if config.tokenizer else None
    words = said.null_tokens.replace(",", " ").split()
    ids = [int(word) if word.isdecimal() else -1 for word in words]
    if len(ids) > of.length or not all(0 <= token < of.vocabulary for token in ids):
        raise ArgumentError(
            f"--null-tokens: found {said.null_tokens!r}, expected up to {of.length} ids of 0 to {of.vocabulary - 1}, padded "
            "with 0 behind"
        )
    return tuple(ids) + (0,) * (of.length - len(ids))


@dataclass(frozen=True)
class Found:
    """A latent diffusion model whose architecture is settled. A `Recognised`."""

    source: Source
    name: str
    config: Config
    spec: LatentSpec
    weights: Weights
    null_tokens: tuple[int, ...] | None

    def networks(self) -> tuple[OpenAIUNet, FirstStage, nn.Module | None]:
        """The networks with their weights, in evaluation mode."""
        unet, stage, condition = networks(self.spec)
        pairs = ((unet, self.weights.unet), (stage, self.weights.stage), (condition, self.weights.conditioner))
        for module, weights in pairs:
            if module is not None:
                module.load_state_dict(weights, assign=True)
                module.eval().requires_grad_(False)
        return unet, stage, condition

    def load(self) -> Model:
        """The model with its weights."""
        unet, stage, condition = self.networks()
        return Model(
            family=NAME,
            name=self.name,
            roles=roles(self.spec, unet, stage, condition, self.config.schedule.T),
            inputs=inputs(self.spec, self.null_tokens),
            pipeline=pipeline(self.spec),
            schedule=self.config.schedule,
            prediction=self.spec.prediction,
            variance="fixedsmall",
            defaults=self.defaults(),
            architecture={"config": self.config.origin, **dataclasses.asdict(self.spec)},
            guidance=self.guidance,
            notes=self.weights.notes,
            step_bound=0.025,  # found: up to 0.0194, with deep transformers
        )

    @property
    def guidance(self) -> float:
        """The reference's scale for such a condition, less one."""
        return SCALES.get(type(self.spec.conditioner), 1.0) - 1

    def defaults(self) -> dict[str, Any]:
        """The setting of the reference's scripts: DDIM in its own timesteps, and guidance where the model knows a null."""
        of = self.spec.conditioner
        guided = self.null_tokens is not None or (isinstance(of, ClassConditionerSpec) and of.null is not None)
        return {
            "steps": _steps(self.config), "timesteps": None, "spacing": "leading", "rho": 7.0, "method": "ddim",
            "eta": 1.0 if isinstance(of, ImageConditionerSpec) else 0.0, "t_start": None, "temperature": 1.0,
            "noise_scale": 1.0, "eps_scale": 1.0, "guidance": self.guidance if guided else 0.0,
        }  # fmt: skip

    def lines(self) -> dict[str, str]:
        """What was inferred, each line with where it came from."""
        spec, schedule, defaults = self.spec, self.config.schedule, self.defaults()
        chosen = ("method", "steps", "spacing", "eta", "guidance")
        recorded = ", ".join(f"{key} {defaults[key]}" for key in chosen if defaults[key])
        heads = spec.unet.num_heads or f"{spec.unet.num_head_channels} channels each"
        lines = {
            "name": (self.name, "the file's name or --name"),
            "weights": (self.weights.kind, "the file"),
            "model": (describe(spec), self.config.origin),
            "images": (" x ".join(map(str, spec.image[1:])), self.config.origin),
            "heads": (str(heads), self.config.origin),
            "latent": (f"{' x '.join(map(str, spec.latent))}, scaled by {spec.scale:g}", self.config.origin),
            "schedule": (describe_schedule(schedule), self.config.origin),
            "prediction": (spec.prediction, self.config.origin),
            "defaults": (recorded, "the reference's scripts"),
        }
        return {key: f"{value}  [{origin}]" for key, (value, origin) in lines.items()}


def _steps(config: Config) -> int:
    """STEPS, or the most below it that leading spacing has."""
    alpha_bar = config.schedule.schedule().alpha_bar
    for steps in range(min(STEPS, len(alpha_bar)), 0, -1):
        try:
            kept_timesteps(alpha_bar, steps, "leading")
        except ArgumentError:
            continue  # a stride that would end beyond the last timestep
        return steps
    raise CheckpointError(f"{config.origin}: found a schedule of {len(alpha_bar)} timesteps, expected two or more")
