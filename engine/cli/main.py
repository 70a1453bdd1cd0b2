"""The command line `diffusevae`: options in, one Sampler call, files and a report out."""

from __future__ import annotations

import os
from itertools import repeat
from typing import Any

import click

from engine import __version__
from engine.abilities import upscaled_input
from engine.bundle.graphs import SAMPLER
from engine.bundle.prior import read_prior
from engine.bundle.reader import Bundle
from engine.checks import check_inputs, count_of
from engine.cli.bulk import bulk_options, sample_in_bulk, take_bulk
from engine.cli.cascade import CASCADE, StageValues, cascade, note_next, sample_cascade
from engine.cli.edit import edit, mix, walk
from engine.cli.elsewhere import commands as commands_elsewhere
from engine.cli.info import info, verify
from engine.cli.inputs import INPUT, LINKS, options, take_inputs
from engine.cli.options import (
    BUDGET,
    CANVAS,
    FIRST,
    MACHINE,
    NOISE_SEED,
    PRIOR,
    READING,
    SEED,
    SETTING,
    NearChoice,
    open_bundle,
    open_sampler,
    output,
    run_images,
    run_options,
)  # fmt: skip
from engine.cli.output import check_results
from engine.cli.stream import Resumable, Run, Walk, sample_to
from engine.cli.terminal import Program
from engine.errors import ArgumentError, did_you_mean
from engine.feeds import noise_bytes, noise_feeds, setting_feeds, write_feeds
from engine.imaging import load_images
from engine.inpaint import picture_shape
from engine.places import check_file
from engine.result import U8, Batch
from engine.sampler import Sampler
from engine.solver.noise import resolve_seeds

# A fixed width: --help is the same text in every terminal (and in tests/help).
HELP_WIDTH = {"max_content_width": 100, "terminal_width": 100}


class Suggesting(Program, click.Group):
    """Answers an unknown command with the nearest one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            names = self.list_commands(ctx)
            ctx.fail(f"No such command {args[0]!r}.{did_you_mean(args[0], names)} There are: {', '.join(names)}.")
        return super().resolve_command(ctx, args)


@click.group(cls=Suggesting, context_settings={**HELP_WIDTH, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="diffusevae")
def cli() -> None:
    """Sample from diffusion models in a few steps: bundles of exported graphs in, images out."""


@cli.command(cls=Resumable)
@click.argument("bundle")
@click.option("-n", "--n", "--number", "n", type=int, help="Images. Default: one, or one a seed.")
@SEED
@FIRST
@INPUT
@SETTING
@PRIOR
@MACHINE
@CANVAS
@BUDGET
@CASCADE
@output("samples.png")
@bulk_options
def sample(
    bundle: str,
    n: int | None,
    first: int,
    prior: str | None,
    whole: bool,
    stages: tuple[StageValues, ...],
    **given: Any,
) -> None:
    """Sample images from BUNDLE.

    Without --steps, --timesteps, --spacing, --rho, --method, --eta and --t-start the bundle's recorded setting
    applies; any one of them replaces it by ddim, uniform spacing, eta 0, from pure noise. Where settings were fitted to
    the bundle, that of the same number of steps takes the place of either, unless --setting plain says otherwise.

    With one of the last five options --out is a folder of shards, which are the same whoever makes them.
    """
    if stages and not whole:
        raise ArgumentError("stage: found it without --cascade, expected both; add --cascade")
    bulk, budget = take_bulk(given), {name: given.pop(name) for name in ("budget_ms", "at_most", "anytime")}
    if whole and (first or any(budget.values()) or given["size"] is not None):
        raise ArgumentError(
            "cascade: found it with --first, --size or a budget of time, expected one call of all stages; leave those out"
        )
    if bulk is not None:
        if first:
            raise ArgumentError("first: found it with shards, which go on where they were stopped anyway; leave it out")
        if any(budget.values()):
            raise ArgumentError("budget_ms: found one with shards, which are the same whoever makes them; leave it out")
        sample_in_bulk(bundle, n, bulk, {**given, "prior": prior}, stages if whole else None)
        return
    if whole:
        sample_cascade(bundle, n, stages, {**given, "prior": prior})
        return
    opened = open_bundle(bundle, given)
    note_next(opened)
    run = Run.of(opened.manifest, n, first, {**run_options(opened, given), "prior": prior, **budget})
    check_results(opened.manifest, run.count, run.options["seed"], first=first, **given)
    with open_sampler(opened, given) as sampler:
        sample_to(sampler, run, **given)


# Of the commands that a Sampler's method on pictures is behind.
ON_IMAGES = options(
    click.argument("bundle"), click.argument("images", nargs=-1, required=True), SEED, INPUT, SETTING, MACHINE, CANVAS,
    READING,
)


@cli.command(short_help="Encode images, and sample from what the encoder makes of them.")
@ON_IMAGES
@output("reconstructions.png")
def reconstruct(bundle: str, images: tuple[str, ...], **given: Any) -> None:
    """Encode IMAGES (files, folders or .npy), and sample from what the bundle's encoder makes of them.

    Where it makes the state that the steps change, they are decoded again without a step, and there are no options.
    """
    run_images(bundle, images, Sampler.reconstruct, given)


NOISE_LEVEL = click.option(
    "--noise-level", type=int, help="A timestep: the noise that IMAGES are given first (conditioning augmentation)."
)


@cli.command()
@ON_IMAGES
@NOISE_LEVEL
@output("refined.png")
def refine(bundle: str, images: tuple[str, ...], **given: Any) -> None:
    """Refine IMAGES (files, folders or .npy) themselves: denoise, sharpen. --with-start shows them above.

    --t-start auto chooses the start by how damaged they look, from the table that `diffusevae fit-refine` wrote.
    """
    run_images(bundle, images, Sampler.refine, given)


@cli.command(short_help="Sample from IMAGES that are the bundle's input, of a low resolution say.")
@ON_IMAGES
@NOISE_LEVEL
@output("upscaled.png")
def upscale(bundle: str, images: tuple[str, ...], **given: Any) -> None:
    """Sample from IMAGES (files, folders or .npy), one each: for a bundle that takes one picture, such as one to enlarge."""
    run_images(bundle, images, Sampler.upscale, given, lambda manifest: upscaled_input(manifest, "upscale").picture_shape)


@cli.command(short_help="Fill in the part of IMAGES that a mask marks.")
@click.option("--mask", required=True, help="A picture, white where IMAGES are filled in; or a folder of one an image.")
@click.option("--no-composite", is_flag=True, help="Do not put the given pixels back outside of the mask.")
@ON_IMAGES
@output("inpainted.png")
def inpaint(bundle: str, images: tuple[str, ...], mask: str, no_composite: bool, **given: Any) -> None:
    """Fill in the part of IMAGES (files, folders or .npy) that the mask marks, with what BUNDLE makes of the rest.

    The mask is resized and cropped as IMAGES are. Outside of it the results are the images themselves.
    """

    def run(sampler: Sampler, pixels: U8, **options: Any) -> Batch:
        shape = (1, *picture_shape(sampler.bundle.manifest)[1:])
        masks = load_images([mask], shape, fit=fit).images
        return sampler.inpaint(pixels, masks, composite=not no_composite, **options)

    fit = given["fit"]
    run_images(bundle, images, run, given, picture_shape)


@cli.command(cls=Resumable, short_help="Walk from the image of one seed to that of another.")
@click.argument("bundle")
@click.argument("a", type=click.IntRange(0, 2**64 - 1))
@click.argument("b", type=click.IntRange(0, 2**64 - 1))
@click.option("-n", "--number", "n", type=int, default=8, show_default=True, help="Images, both ends included.")
@click.option(
    "--mode",
    type=NearChoice(["lerp", "slerp"]),
    help="Path of what moves.  [default: lerp of the drawn input, slerp of noise]",
)
@FIRST
@NOISE_SEED
@INPUT
@SETTING
@PRIOR
@MACHINE
@CANVAS
@output("interpolation.png")
def interpolate(bundle: str, a: int, b: int, n: int, mode: str | None, first: int, prior: str | None, **given: Any) -> None:
    """Walk from the image of seed A to that of seed B: the drawn input moves, the noise stays.

    In a bundle without a drawn input the noise moves that the images start from.
    """
    opened = open_bundle(bundle, given)
    options = run_options(opened, given)
    shared = a if options["seed"] is None else options["seed"]
    run = Walk.of(
        opened.manifest, n, first, {**options, "seed": shared}, ends=(a, b), how={"mode": mode, "prior": prior}
    )
    check_results(opened.manifest, run.count, repeat(shared, run.count), first=first, **given)
    with open_sampler(opened, given) as sampler:
        sample_to(sampler, run, **given)


@cli.command("steps", short_help="Write a setting as input arrays of the whole-sampler graph.")
@click.argument("bundle")
@click.option("-n", "--number", "n", type=int, help="Write the inputs, x_T and noise of so many images too.")
@SEED
@INPUT
@SETTING
@LINKS
@click.option("--out", default="steps.npz", show_default=True, help="File to write, .npz.")
def write_steps(
    bundle: str, n: int | None, seed: int | list[int] | None, allow_links: tuple[str, ...], out: str, **given: Any
) -> None:
    """Write what a few-step setting is to BUNDLE's sampler.onnx: timesteps, coefficients, weights and start.

    With -n or --seed also the inputs, x_T and noise that `diffusevae sample` draws from these seeds, so that any ONNX
    runtime makes the same images. See examples/whole_sampler.py.
    """
    check_file(out, suffixes=(".npz",))
    opened = Bundle.open(bundle, allow_links)
    manifest = opened.manifest
    inputs = take_inputs(given, opened)
    check_inputs(inputs, manifest.inputs, (), "steps")
    feeds, table = setting_feeds(manifest, given)
    if n is not None or seed is not None or inputs:
        _check_memory(n, noise_bytes(manifest, table, len(seed) if isinstance(seed, list) else count_of(n) or 1))
        seeds = resolve_seeds(seed, count_of(n))
        feeds |= noise_feeds(manifest, table, seeds, read_prior(opened), inputs)
    target = write_feeds(out, feeds)
    arrays = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    click.echo(f"{target}: {len(table.rows)} calls of {table.method}; {arrays}")
    if SAMPLER not in manifest.graphs:
        click.echo("note: this bundle holds no sampler graph; build it with --whole-sampler to have one", err=True)


def _check_memory(n: int | None, nbytes: int) -> None:
    """Refuse arrays of one file that this machine could not hold."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > memory:
        raise ArgumentError(
            f"n: found {n:,}, which is {nbytes / 1e9:,.1f} GB of arrays in one file, expected no more than the "
            f"{memory / 1e9:,.1f} GB of memory of this machine; write several files, each with its --seed"
        )


for verb in (edit, mix, walk, cascade, info, verify):
    cli.add_command(verb)
for command_elsewhere in commands_elsewhere():
    cli.add_command(command_elsewhere)


def main() -> None:
    """Entry point of the console script and of `python -m engine`."""
    cli(prog_name="diffusevae")
