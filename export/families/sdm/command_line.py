"""The command line's options for what the weights of a semantic diffusion model cannot tell."""

from __future__ import annotations

import click

from engine.cli.inputs import options

flags = options(
    click.option(
        "--instance-edges/--no-instance-edges",
        default=None,
        help="Whether the last channel of a semantic diffusion model's label map is of the edges between instances.",
    ),
    click.option(
        "--channel-mean", type=float, nargs=3, default=None, help="Of its images in [-1, 1]: what --quantize-denoised makes "
        "of each step's x0, with --channel-std."
    ),
    click.option("--channel-std", type=float, nargs=3, default=None, help="The deviations beside --channel-mean."),
)  # fmt: skip
