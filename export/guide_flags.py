"""The command line's options for guides, whatever the model's family; what they say is `export.guide_options`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engine.cli.inputs import options


def _said(_: click.Context, __: click.Parameter, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What was given again and again; none is not said."""
    return values or None


guide_flags = options(
    click.option(
        "--guide",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        callback=_said,
        help="A classifier of guided-diffusion that guides the model. Again for each of several ranges of timesteps.",
    ),
    click.option(
        "--guide-adapter",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE",
        callback=_said,
        help="Adapter (PPAP) of a range of timesteps; --guide is then the classifier that it adapts, torchvision's ResNet "
        "or timm's ViT. Again for each range, from the clean end.",
    ),
    click.option(
        "--guide-timesteps",
        type=(int, int),
        multiple=True,
        metavar="LOW HIGH",
        callback=_said,
        help="Timesteps that a guide serves, both included. Again for each --guide or --guide-adapter, in their order, from "
        "the clean end.  [default: all of one guide, equal ranges of adapters]",
    ),
    click.option(
        "--guide-scale", type=float, help="Scale that the bundle records.  [default: the published; 7.5 of adapters; or 1]"
    ),
    click.option("--guide-heads", type=click.IntRange(1), help="Attention heads of the classifiers."),
    click.option("--guide-head-channels", type=click.IntRange(1), help="Channels of each of them.  [default: 64]"),
    click.option("--guide-depth", type=click.IntRange(1), help="Residual blocks on each level of the classifiers."),
)
