"""Denoising diffusion GANs: a few large steps, each by a generator that is given a latent of its own (Xiao et al. 2022,
https://arxiv.org/abs/2112.07804).

keys.py           the generator that keys and shapes describe
architecture.py   what weights cannot tell, and the schedule
graphs.py, pipeline.py   what its bundles declare
model.py          the pieces put together: a `Family` and what it recognises
command_line.py   its options of the command line
"""

from __future__ import annotations

from export.families.base import Command
from export.families.ddgan.architecture import Options
from export.families.ddgan.model import NAME, Found, claims, recognise

__all__ = ["NAME", "Found", "Options", "claims", "flags", "recognise"]


def flags(command: Command) -> Command:
    """Add to a click command the options that `recognise` takes beside other families'."""
    from export.families.ddgan import command_line  # not above: a build from Python needs no click

    return command_line.flags(command)
