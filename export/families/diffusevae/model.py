"""A DiffuseVAE checkpoint from its keys to a model with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from export.families.base import Model, Source, options_of
from export.families.diffusevae.architecture import Architecture, infer
from export.families.diffusevae.evidence import Evidence, Options
from export.families.diffusevae.graphs import roles
from export.families.diffusevae.pipeline import inputs, pipeline
from export.models.layouts import from_checkpoint
from export.models.unet import UNet
from export.models.vae import VAE
from export.read.checkpoint import Checkpoint, Selection, as_float32, read_checkpoint
from export.read.parts import WEIGHTS, Network, Stage, select, split, vae_stage
from export.read.schedule import describe
from export.read.wrappers import NETWORK, STAGE, part_of

NAME = "diffusevae"


def claims(checkpoint: Checkpoint) -> bool:
    """Whether the keys are those of a DiffuseVAE training wrapper, or of a bare UNet or VAE of its kind."""
    return any(part_of(key) in (NETWORK, STAGE) for key in checkpoint.tensors)


def recognise(checkpoint: Checkpoint, other: Path | None, weights: str, options: Mapping[str, Any]) -> Found:
    """The model in a checkpoint; `other`, the VAE's own file, replaces a VAE inside it."""
    parts = split(checkpoint)
    network, said = select(parts, weights, checkpoint.path), options_of(Options, options, NAME)
    meant = Selection(weights, said.vae_key, STAGE, "--vae-key")
    stage = parts.vae if other is None else vae_stage(read_checkpoint(other, meant))
    evidence = Evidence(checkpoint.path, checkpoint.metadata, network, stage, said)
    architecture = infer(evidence)
    second = stage.checkpoint if stage and stage.checkpoint is not checkpoint and architecture.conditional else None
    return Found(Source(checkpoint, second, weights), architecture, network, stage)


@dataclass(frozen=True)
class Found:
    """A DiffuseVAE model whose architecture is settled. A `Recognised`."""

    source: Source
    architecture: Architecture
    network: Network
    stage: Stage | None

    @property
    def name(self) -> str:
        """The name that its bundle bears."""
        return self.architecture.name

    def networks(self) -> tuple[UNet, VAE | None]:
        """Both networks in float32, evaluation mode; no more than the chosen weights is ever in memory."""
        network, stage, spec = self.network, self.stage, self.architecture.vae
        with torch.device("meta"):
            unet = UNet(self.architecture.unet)
            vae = VAE(spec) if spec is not None else None
        unet.load_state_dict(from_checkpoint(unet, as_float32(network.unet, network.path, network.prefix)), assign=True)
        if vae is not None:
            assert stage is not None, "a conditional network was inferred with its VAE"
            vae.load_state_dict(as_float32(stage.tensors, stage.checkpoint.path, stage.prefix), assign=True)
            vae.eval().requires_grad_(False)
        return unet.eval().requires_grad_(False), vae

    def load(self) -> Model:
        """The model, wired."""
        return self.model(*self.networks())

    def model(self, unet: UNet, vae: VAE | None) -> Model:
        """The model of these networks."""
        a = self.architecture
        return Model(
            family=NAME,
            name=a.name,
            roles=roles(unet, vae, a.schedule.T, a.prediction),
            inputs=inputs(a.unet, a.vae),
            pipeline=pipeline(a.unet, a.formulation, a.prediction),
            schedule=a.schedule,
            prediction=a.prediction,
            variance=a.variance,
            defaults=a.defaults,
            architecture={
                "formulation": a.formulation,
                "unet": dataclasses.asdict(a.unet),
                "vae": dataclasses.asdict(a.vae) if a.vae else None,
            },
            notes=self.notes(),
            encoder=self.stage.checkpoint if self.stage is not None and a.conditional else None,
        )

    def notes(self) -> tuple[str, ...]:
        """What a user should know who asks later why the images are what they are."""
        files = [file for file in (self.source.checkpoint, self.source.other) if file is not None]
        kinds = {str(t.dtype).removeprefix("torch.") for t in self.network.unet.values() if t.dtype.itemsize < 4}
        stored = f"the weights are stored in {' and '.join(sorted(kinds))}: rounded, if they were trained in float32"
        rounded = [stored] if kinds else []
        return (*(note for file in files for note in file.notes), *rounded, *self.architecture.notes)

    def lines(self) -> dict[str, str]:
        """What was inferred, each line with where it came from."""
        a, unet, origins = self.architecture, self.architecture.unet, self.architecture.origins
        kind = f"formulation {a.formulation}" if a.conditional else "unconditional"
        mults = ",".join(map(str, unet.channel_mult))
        attention = ", ".join(str(unet.image_size >> level) for level in unet.attention_levels)
        prefix, key = self.network.prefix, self.source.checkpoint.key
        chosen = "" if key in (".", "state_dict") else f"{key}: "
        single = "" if chosen or any(mark in prefix for mark in WEIGHTS.values()) else " (the only network in the file)"
        lines = {
            "name": (a.name, origins["name"]),
            "weights": (f"{self.source.weights}{single}", f"{chosen}{prefix}*"),
            "model": (kind, origins["formulation"]),
            "image size": (f"{unet.image_size} x {unet.image_size}", origins["image_size"]),
            "UNet": (
                f"{unet.layout} layout, {unet.model_channels} channels x {mults}, {unet.blocks_per_level} blocks a level",
                "weights",
            ),
            "attention": (f"at {attention or 'the middle only'}{' and the middle' if attention else ''}", "weights"),
            "heads": (str(unet.heads), origins["heads"]),
        }
        if unet.z_dim is not None:
            lines["z into the UNet"] = (f"width {unet.z_dim}{', scale-shift' if unet.scale_shift else ''}", "weights")
        if a.vae is not None:
            lines["VAE encoder"] = (a.vae.enc_blocks, origins["vae"])
            lines["VAE decoder"] = (a.vae.dec_blocks, origins["vae"])
        recorded = ", ".join(f"{k} {v}" for k, v in a.defaults.items() if v not in (None, 0.0))
        lines |= {
            "schedule": (describe(a.schedule), origins["schedule"]),
            "prediction": (a.prediction, origins["prediction"]),
            "variance": (a.variance, origins["variance"]),
            "defaults": (recorded, origins["defaults"]),
        }
        return {key: f"{value}  [{origin}]" for key, (value, origin) in lines.items()}
