"""A checkpoint of a denoising diffusion GAN from its keys to a model with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import ArgumentError, CheckpointError
from export.families.adm.model import name_of
from export.families.base import Model, Source, options_of
from export.families.ddgan.architecture import Architecture, Options, infer
from export.families.ddgan.graphs import roles
from export.families.ddgan.keys import claims as claims_keys
from export.families.ddgan.keys import read_spec
from export.families.ddgan.pipeline import inputs, pipeline
from export.models.ncsnpp import Generator, GeneratorSpec, PyramidConv
from export.models.unset import shapes_of, unset
from export.read.checkpoint import Checkpoint, as_float32, stored_as
from export.read.parts import require
from export.read.wrappers import see_through

NAME = "ddgan"


def claims(checkpoint: Checkpoint) -> bool:
    """Whether the keys are those of a generator with latents."""
    return claims_keys(checkpoint.tensors)


def recognise(checkpoint: Checkpoint, other: Path | None, weights: str, options: Mapping[str, Any]) -> Found:
    """The model in a checkpoint, by its shapes and by what was said of it."""
    said = options_of(Options, options, NAME)
    if other is not None:
        raise ArgumentError(f"--vae: found {other}, expected none: a denoising diffusion GAN has no VAE")
    path, keys = checkpoint.path, see_through(checkpoint.tensors, checkpoint.path)
    spec = read_spec(keys.tensors, path)
    try:
        expected = shapes_of(unset(lambda: Generator(spec)))
    except ValueError as error:  # of a norm whose groups do not divide its channels
        raise CheckpointError(
            f"{path}: found a {_describe(spec)} ({error}), expected widths that its norms can share out; the file is not a "
            "checkpoint of this kind"
        ) from error
    require(keys.tensors, expected, path, keys.prefix("all_modules.").removesuffix("all_modules."), f"a {_describe(spec)}")
    return Found(Source(checkpoint, None, weights), name_of(path, said.name), infer(spec, path, said), keys.tensors)


def _describe(spec: GeneratorSpec) -> str:
    widths = ", ".join(map(str, spec.widths))
    return f"generator of {widths} channels, {spec.blocks} blocks a level, latents of {spec.latent}"


@dataclass(frozen=True)
class Found:
    """A denoising diffusion GAN whose architecture is settled. A `Recognised`."""

    source: Source
    name: str
    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]

    def network(self) -> Generator:
        """The generator with its weights, in evaluation mode; filters folded into the image's convolutions."""
        generator = unset(lambda: Generator(self.architecture.generator))
        generator.load_state_dict(as_float32(self.tensors, self.source.checkpoint.path), assign=True)
        for index, layer in enumerate(generator.all_modules):
            if isinstance(layer, PyramidConv):
                generator.all_modules[index] = layer.folded()
        return generator.eval().requires_grad_(False)

    def load(self) -> Model:
        """The model with its weights."""
        of = self.architecture
        graphs = roles(of, self.network())
        return Model(
            family=NAME,
            name=self.name,
            roles=graphs,
            inputs=inputs(graphs),
            pipeline=pipeline(of),
            schedule=of.schedule,
            prediction="x0",
            variance="fixedsmall",
            defaults=of.defaults,
            architecture={"generator": dataclasses.asdict(of.generator)},
            notes=(*self.source.checkpoint.notes, *stored_as(self.tensors), *of.notes),
        )

    def lines(self) -> dict[str, str]:
        """What was inferred, each line with where it came from."""
        of = self.architecture
        betas = ", ".join(f"{beta:.4f}" for beta in of.schedule.betas or ())
        return {
            "name": f"{self.name}  [the file's name or --name]",
            "weights": f"{self.source.weights}  [the only network in the file]",
            "model": f"{_describe(of.generator)}  [weights]",
            "images": f"{' x '.join(map(str, of.size))}  [--image-size, --size]",
            "schedule": f"{of.schedule.T} steps, betas {betas}  [--diffusion-steps, --beta-min, --beta-max]",
            "prediction": "x0  [what generators of this kind make]",
            "defaults": f"method ddpm, steps {of.schedule.T}  [--diffusion-steps]",
        }
