"""The command line's options for what the weights of a denoising diffusion GAN cannot tell."""

from __future__ import annotations

import click

from engine.cli.inputs import options

flags = options(
    click.option("--beta-min", type=float, help="Of a denoising diffusion GAN's process.  [default: 0.1]"),
    click.option("--beta-max", type=float, help="The same at its end.  [default: 20]"),
)
