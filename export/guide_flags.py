"""The command line's options for a guide, whatever the model's family; what they say is `export.guide_options`."""

from __future__ import annotations

from pathlib import Path

import click

from engine.cli.inputs import options

guide_flags = options(
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
