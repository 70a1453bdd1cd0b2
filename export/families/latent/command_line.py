"""The command line's options for what the weights of a latent diffusion model cannot tell."""

from __future__ import annotations

from pathlib import Path

import click

from engine.cli.inputs import options

flags = options(
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="YAML",
        help="The configuration beside the checkpoint of a latent diffusion model; published models are known without.",
    ),
    click.option(
        "--size",
        type=(click.IntRange(1), click.IntRange(1)),
        default=None,
        metavar="HEIGHT WIDTH",
        help="Size of its images, if other than in training.",
    ),
    click.option("--null-label", type=click.IntRange(0), help="The label that stands for no class, which guidance needs."),
    click.option("--null-tokens", metavar="IDS", help="The ids of the empty text, which guidance needs."),
)
