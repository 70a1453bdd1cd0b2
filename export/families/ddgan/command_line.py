"""The command line's options for what the weights of a denoising diffusion GAN cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
FLAGS = (
    click.option("--beta-min", type=float, help="Of a denoising diffusion GAN's process.  [default: 0.1]"),
    click.option("--beta-max", type=float, help="The same at its end.  [default: 20]"),
)


def flags(command: Command) -> Command:
    """Add the options to a click command, in their order."""
    for option in reversed(FLAGS):
        command = option(command)
    return command
