"""The commands that move through the latent: edit, mix, walk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import click
import numpy as np

from engine.abilities import picture_shape
from engine.bundle.directions import Edits
from engine.bundle.reader import Bundle
from engine.cli.inputs import INPUT
from engine.cli.options import (
    MACHINE,
    NOISE_SEED,
    PRIOR,
    READING,
    SEED,
    SETTING,
    Listed,
    NearChoice,
    Seeds,
    open_bundle,
    open_sampler,
    options,
    output,
    run_options,
)  # fmt: skip
from engine.cli.output import check_results, echo_fields, echo_json, finish
from engine.errors import ArgumentError
from engine.imaging import Loaded, check_animation, load_images, save_animation
from engine.result import U8
from engine.solver.noise import resolve_seeds


class Strength(click.ParamType):
    """NAME=STRENGTH; a name may hold an equals sign of its own."""

    name = "name=strength"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        name, equals, text = str(value).rpartition("=")
        try:
            strength = float(text)
        except ValueError:
            strength = None
        if not (equals and name) or strength is None:
            self.fail(f"{value!r} is not NAME=STRENGTH, with a number for STRENGTH: glasses=1, hair=afro=0.5.", param, ctx)
        return name, strength


OF = click.option("--of", type=Seeds(), help="Seeds, whose samples stand in place of IMAGES: 3 or 3,9,17.")
WHAT = options(click.argument("bundle"), click.argument("images", nargs=-1), OF)


@click.command(short_help="Move images, or the samples of seeds, along a bundle's directions.")
@WHAT
@click.option(
    "--edit", "edits", type=Strength(), multiple=True, required=True, metavar="NAME=STRENGTH",
    help="A direction (`diffusevae info` lists them) and how far: 1 adds the attribute, -1 takes it. Again for each.",
)  # fmt: skip
@click.option("--strengths", type=Listed(float, "-1,0,1", single=False), help="A row for each image: every edit times each.")
@click.option("--preserve", type=float, help="How much of the originals stays, 0 to 1.  [default: 0.9, for IMAGES]")
@SEED
@INPUT
@SETTING
@PRIOR
@MACHINE
@READING
@output("edited.png")
def edit(
    bundle: str, images: tuple[str, ...], of: int | list[int] | None, edits: tuple[tuple[str, float], ...],
    strengths: list[float] | None, preserve: float | None, **given: Any,
) -> None:  # fmt: skip
    """Edit IMAGES (files, folders or .npy), or the samples of the seeds --of, along the directions of BUNDLE.

    The noise is that of --seed, or of the seeds --of themselves. `diffusevae fit-directions` puts directions into a bundle.
    """
    opened = open_bundle(bundle, given)
    what, loaded = _taken(opened, images, of, given)
    asked = dict(edits)
    if len(asked) < len(edits):
        raise ArgumentError("edit: found one direction twice, expected one strength for each; leave one out")
    call = run_options(opened, given) | {"prior": given.pop("prior")}
    factors, n = strengths or [1.0], len(what)
    edit_by: Edits = {name: tuple(factor * value for _ in range(n) for factor in factors) for name, value in asked.items()}
    seeds = np.repeat(resolve_seeds(call["seed"] if of is None else what, n), len(factors))
    call["seed"] = seeds if of is None else call["seed"]
    check_results(opened.manifest, len(seeds), seeds.tolist(), **given)
    with open_sampler(opened, given) as sampler:
        repeated = np.repeat(what, len(factors), axis=0)
        batch = sampler.edit(repeated, edit_by if strengths else asked, preserve=preserve, **call)
        finish(sampler, batch, loaded=loaded, columns=len(factors) if strengths else None, **given)


@click.command(short_help="Make one image of several.")
@WHAT
@click.option("--weights", type=Listed(float, "1,2,0.5", single=False), help="One for each.  [default: all alike]")
@NOISE_SEED
@INPUT
@SETTING
@PRIOR
@MACHINE
@READING
@output("mixed.png")
def mix(
    bundle: str, images: tuple[str, ...], of: int | list[int] | None, weights: list[float] | None, **given: Any
) -> None:
    """Make one image of the weighted mean of the latents of IMAGES, or of the seeds --of.

    The noise is that of --seed, or of the first of the seeds --of.
    """
    opened = open_bundle(bundle, given)
    what, loaded = _taken(opened, images, of, given)
    call = run_options(opened, given) | {"prior": given.pop("prior")}
    check_results(opened.manifest, 1, call["seed"], **given)
    with open_sampler(opened, given) as sampler:
        finish(sampler, sampler.mix(what, weights, **call), loaded=loaded, **given)


def _taken(
    opened: Bundle, images: Sequence[str], of: int | list[int] | None, given: dict[str, Any]
) -> tuple[Any, Loaded | None]:
    """What there is to work on: pixels read, or seeds."""
    reading = {name: given.pop(name) for name in ("background", "fit", "strict")}
    if bool(images) == (of is not None):
        raise ArgumentError(f"images: found {'images and seeds' if images else 'none'}, expected files, or seeds: --of 3,9")
    if of is not None:
        return np.array([of] if isinstance(of, int) else of, np.uint64), None
    loaded = load_images(images, picture_shape(opened.manifest), **reading)
    return loaded.images, loaded


@click.command(short_help="Animate a path through the samples of seeds.")
@click.argument("bundle")
@click.argument("seeds", type=click.IntRange(0, 2**64 - 1), nargs=-1, required=True)
@click.option("--frames", type=click.IntRange(1), default=12, show_default=True, help="From one seed to the next.")
@click.option("--loop", is_flag=True, help="Go back to the first seed.")
@click.option("--mode", type=NearChoice(["lerp", "slerp"]), default="slerp", show_default=True, help="Of the path.")
@click.option("--fps", type=click.FloatRange(1, 50), default=12, show_default=True, help="Frames a second.")
@click.option("--scale", type=click.IntRange(1, 64), default=4, show_default=True, help="Pixels that each becomes.")
@NOISE_SEED
@INPUT
@SETTING
@PRIOR
@MACHINE
@click.option("--out", default="walk.gif", show_default=True, help="A .gif or .webp file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def walk(
    bundle: str, seeds: tuple[int, ...], frames: int, loop: bool, mode: str, fps: float, scale: int, prior: str | None,
    out: str, **given: Any,
) -> None:  # fmt: skip
    """Walk from the image of one of SEEDS to the next: the drawn input moves, the noise stays that of the first."""
    check_animation(out)
    if len(seeds) < 2:
        raise ArgumentError(f"seeds: found {len(seeds)}, expected two or more; add one")
    opened = Bundle.open(bundle, given.pop("allow_links"))
    call, as_json = run_options(opened, given), given.pop("as_json")
    shared = seeds[0] if call["seed"] is None else call["seed"]
    ends = [*seeds, seeds[0]] if loop else seeds
    parts: list[U8] = []
    with open_sampler(opened, given) as sampler:
        for index, (a, b) in enumerate(pairwise(ends)):
            last = index == len(ends) - 2 and not loop  # every other leg's end is the next one's beginning
            part = (0, frames + int(last))
            leg = sampler.interpolate(a, b, frames + 1, mode=mode, prior=prior, part=part, **{**call, "seed": shared})
            parts.append(leg.images)
        images = np.concatenate(parts).repeat(scale, axis=1).repeat(scale, axis=2)
        save_animation(out, images, fps)
        told: dict[str, Any] = {"bundle": f"{opened.manifest.name} on {sampler.backend}, {sampler.precision}"}
    told |= {"seeds": list(seeds), "frames": len(images), "fps": fps, "size": images.shape[2:0:-1], "wrote": out}
    if as_json:
        echo_json(told)
    else:
        echo_fields({name: str(value) for name, value in told.items()})


