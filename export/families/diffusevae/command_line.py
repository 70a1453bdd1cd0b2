"""The command line's options for what DiffuseVAE weights cannot tell."""

from __future__ import annotations

import click

from engine.cli.inputs import options
from engine.cli.options import NearChoice
from engine.solver.levels import FIXED_VARIANCES
from engine.solver.prediction import PREDICTIONS
from export.families.diffusevae.presets import PRESETS

flags = options(
    click.option(
        "--preset",
        metavar="NAME",
        help=f"A published configuration: {', '.join(PRESETS)} of DiffuseVAE, or one of another family.",
    ),
    click.option("--heads", type=click.IntRange(1), help="Attention heads of the UNet; weights cannot tell."),
    click.option(
        "--image-size", type=click.IntRange(1), metavar="PIXELS", help="Side of the images, where weights do not tell it."
    ),
    click.option(
        "--formulation",
        type=click.IntRange(1, 2),
        help="DiffuseVAE formulation, for files without the schedule's constants.",
    ),
    click.option(
        "--schedule",
        type=(float, float, int),
        metavar="BETA_1 BETA_T T",
        default=None,
        help="Linear noise schedule, for files without betas, or whose betas were rounded or contradict their "
        "hyper-parameters; the reference's is 0.0001 0.02 1000.",
    ),
    click.option(
        "--prediction",
        type=NearChoice(list(PREDICTIONS)),
        help="What the network was trained to predict, where the file does not say.  [default: eps]",
    ),
    click.option(
        "--variance",
        type=NearChoice(FIXED_VARIANCES),
        help="Variance of method ddpm that the bundle records.  [default: fixedlarge]",
    ),
    click.option(
        "--vae-enc-blocks", metavar="TEXT", help="Block string of the VAE's encoder, if outside the reference's convention."
    ),
    click.option("--vae-dec-blocks", metavar="TEXT", help="Block string of its decoder."),
    click.option("--vae-key", metavar="PATH", help="Which of several sets of weights in the file of --vae."),
)
