"""Guided diffusion: the pixel-space models of improved-diffusion and guided-diffusion, and their upsamplers (Nichol &
Dhariwal 2021, https://arxiv.org/abs/2102.09672; Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233).

keys.py           the UNet that keys and shapes describe
published.py      the published models, recognised by shapes: what weights cannot tell
architecture.py   the model, from weights, published configurations and flags
graphs.py, pipeline.py   what its bundles declare
model.py          the pieces put together: a `Family` and what it recognises
command_line.py   its options of the command line
"""

from __future__ import annotations

from export.families.adm.architecture import Options
from export.families.adm.model import NAME, Found, claims, recognise
from export.families.base import Command

__all__ = ["NAME", "Found", "Options", "claims", "flags", "recognise"]


def flags(command: Command) -> Command:
    """Add to a click command the options that `recognise` takes."""
    from export.families.adm import command_line  # not above: a build from Python needs no click

    return command_line.flags(command)
