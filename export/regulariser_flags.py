"""The command line's options for a regulariser, whatever the model's family: those of `export.regulariser_options`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from engine.cli.inputs import options
from engine.cli.options import Listed, NearChoice
from engine.solver.regulariser import REGULARISE
from export.families import family_flags


def parse_options(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """Options of a build in one text, by name; those that are not said are left out."""
    if value is None:
        return None
    command = click.command("build")(family_flags(lambda **said: said))
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of words: {error}", ctx, param) from error
    with command.make_context("build", words, parent=ctx) as inner:
        return {name: found for name, found in inner.params.items() if found is not None}


regulariser_flags = options(
    click.option(
        "--regulariser",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="An unconditional model of the same images and schedule that regularises each step.",
    ),
    click.option(
        "--regularise", type=NearChoice(REGULARISE), help="Where it comes in, that the bundle records.  [default: off]"
    ),
    click.option(
        "--regularise-interval",
        type=Listed(int, "200,800", single=False),
        metavar="LOW,HIGH",
        help="Timesteps at which it runs, both included, that the bundle records.",
    ),
    click.option(
        "--regulariser-options",
        callback=parse_options,
        metavar="WORDS",
        help='Options of its own that its weights cannot tell: "--heads 4 --image-size 64".',
    ),
)
