"""DiffuseVAE: a VAE draws an image, a diffusion model refines it (Pandey et al. 2022, https://arxiv.org/abs/2201.00308).

architecture.py   the model of a checkpoint, from weights, metadata, presets and flags
process.py        formulation and schedule;  pipeline.py, graphs.py: what its bundles declare
model.py          the pieces put together: a `Family` and what it recognises
command_line.py   its options of the command line
"""

from __future__ import annotations

from export.families.base import Command
from export.families.diffusevae.evidence import Options
from export.families.diffusevae.model import NAME, Found, claims, recognise

__all__ = ["NAME", "Found", "Options", "claims", "flags", "recognise"]


def flags(command: Command) -> Command:
    """Add to a click command the options that `recognise` takes."""
    from export.families.diffusevae import command_line  # not above: a build from Python needs no click

    return command_line.flags(command)
