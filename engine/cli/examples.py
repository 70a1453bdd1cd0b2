"""`diffusevae examples`: where this installation has the shipped model, for the command line of `diffusevae build`."""

from __future__ import annotations

from pathlib import Path

import click

from engine.commands import reinstall
from engine.errors import EngineError

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGED = PACKAGE / "_examples"  # what a wheel carries; a checkout has the folder examples beside the package
FOLDER = PACKAGED if PACKAGED.is_dir() else PACKAGE.parent / "examples"
CHECKPOINT = Path("avatars", "avatars.ckpt")


class ExamplesError(EngineError):
    """The shipped model is not where this package has it."""


def examples_dir() -> Path:
    """The folder with avatars/avatars.ckpt and what was fitted to it: its prior, directions, settings and starts."""
    if not (FOLDER / CHECKPOINT).is_file():
        raise ExamplesError(
            f"{FOLDER / CHECKPOINT}: found no such file, expected it as part of the package diffusevae-engine; install it "
            f"again with: {reinstall()}"
        )
    return FOLDER


@click.command("examples")
def examples() -> None:
    """Print the folder of the model that ships with this package:

    diffusevae build "$(diffusevae examples)/avatars/avatars.ckpt"
    """
    click.echo(examples_dir())
