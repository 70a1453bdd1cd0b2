"""What is said of a guide, whatever the model's family: a classifier's file, and what its weights cannot tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from engine.errors import ArgumentError

Command = TypeVar("Command", bound=Callable[..., Any])
FLAGS = (
    click.option(
        "--guide",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        callback=lambda _, __, files: files or None,  # none is not said
        help="A classifier of guided-diffusion that guides the model.",
    ),
    click.option("--guide-scale", type=float, help="Scale that the bundle records.  [default: the published, or 1]"),
    click.option("--guide-heads", type=click.IntRange(1), help="Attention heads of the classifier."),
    click.option("--guide-head-channels", type=click.IntRange(1), help="Channels of each of them.  [default: 64]"),
    click.option("--guide-depth", type=click.IntRange(1), help="Residual blocks on each level of the classifier."),
)


@dataclass(frozen=True)
class GuideOptions:
    """What a user may say of a guide; None is not said.

    guide        the classifier's file, in a tuple
    guide_scale  that the bundle records
    guide_heads, guide_head_channels   one of the two
    guide_depth  residual blocks of a level
    """

    guide: tuple[Path, ...] | None = None
    guide_scale: float | None = None
    guide_heads: int | None = None
    guide_head_channels: int | None = None
    guide_depth: int | None = None


NAMES = tuple(field.name for field in dataclasses.fields(GuideOptions))


def guide_flags(command: Command) -> Command:
    """Add the options to a click command, in their order."""
    for option in reversed(FLAGS):
        command = option(command)
    return command


def split(options: Mapping[str, Any]) -> tuple[GuideOptions, dict[str, Any]]:
    """What was said of the guide, and the rest; ArgumentError for options without a guide, and for several files."""
    said = GuideOptions(**{name: options[name] for name in NAMES if name in options})
    if not said.guide:
        given = next((name for name in NAMES[1:] if getattr(said, name) is not None), None)
        if given is not None:
            flag = given.replace("_", "-")
            raise ArgumentError(f"--{flag}: found it without --guide, expected a classifier's file beside it")
    elif len(said.guide) > 1:
        raise ArgumentError(
            f"--guide: found {len(said.guide)} files, expected one; export.experts makes guides of several, from Python"
        )
    return said, {name: value for name, value in options.items() if name not in NAMES}
