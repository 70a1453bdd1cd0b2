"""The command line's options for what the weights of a guided diffusion model cannot tell."""

from __future__ import annotations

import click

from engine.cli.inputs import options
from engine.cli.options import NearChoice
from export.families.adm.architecture import ORDERS, SCHEDULES

flags = options(
    click.option("--head-channels", type=click.IntRange(1), help="Channels of each attention head, in place of --heads."),
    click.option(
        "--attention-order",
        type=NearChoice(list(ORDERS)),
        help="How guided-diffusion's attention lays out its heads; of an unpublished model.  [default: legacy]",
    ),
    click.option(
        "--noise-schedule", type=NearChoice(list(SCHEDULES)), help="Schedule of an unpublished guided-diffusion model."
    ),
    click.option("--diffusion-steps", type=click.IntRange(2), help="Timesteps of that schedule.  [default: 1000]"),
    click.option(
        "--rescale-timesteps/--no-rescale-timesteps",
        default=None,
        help="Whether its network is given t 1000 / T.  [default: no]",
    ),
    click.option(
        "--small-size", type=click.IntRange(1), metavar="PIXELS", help="Side of the images that its upsampler enlarges."
    ),
    click.option(
        "--respacing",
        metavar="LIST",
        help="Setting that the bundle records, as guided-diffusion spells it: ddim25, 250 or 10,15,20.  [default: ddim25]",
    ),
    click.option(
        "--fixed-variance", is_flag=True, default=None, help="Leave out the half of the last layer that tells the variance."
    ),
)
