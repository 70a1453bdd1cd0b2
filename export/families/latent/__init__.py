"""Latent diffusion: a denoiser in the latent space of an autoencoder (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

config.py         the model that a YAML describes;  fields.py: how it is read;  conditioning.py: its conditioner
published.py      the configurations of the published models, recognised by shapes
weights.py        the weights of a checkpoint, sorted and checked
diffusers_folder.py, diffusers_keys.py   the same models as diffusers saves them
pipeline.py, graphs.py   what its bundles declare
model.py          the pieces put together: a `Family` and what it recognises
command_line.py   its options of the command line
"""

from __future__ import annotations

from export.families.base import Command
from export.families.latent.model import NAME, Found, Options, claims, claims_folder, recognise, recognise_folder

__all__ = ["NAME", "Found", "Options", "claims", "claims_folder", "flags", "recognise", "recognise_folder"]


def flags(command: Command) -> Command:
    """Add to a click command the options that `recognise` takes."""
    from export.families.latent import command_line  # not above: a build from Python needs no click

    return command_line.flags(command)
