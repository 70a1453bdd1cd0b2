"""Semantic diffusion models: guided diffusion's UNet whose norms, from the middle on, a label map scales and shifts (Wang et
al. 2022, https://arxiv.org/abs/2207.00050).

architecture.py        what weights cannot tell of the label map
graphs.py, pipeline.py   what their bundles declare
model.py               the pieces put together: a `Family` and what it recognises
command_line.py        its options of the command line
"""

from __future__ import annotations

from export.families.base import Command
from export.families.sdm.architecture import Options
from export.families.sdm.model import NAME, Found, claims, recognise

__all__ = ["NAME", "Found", "Options", "claims", "flags", "recognise"]


def flags(command: Command) -> Command:
    """Add to a click command the options that `recognise` takes beside guided diffusion's."""
    from export.families.sdm import command_line  # not above: a build from Python needs no click

    return command_line.flags(command)
