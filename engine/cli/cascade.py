"""Cascades on the command line: `diffusevae cascade`, which names the bundle after a bundle, and `sample --cascade`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from engine.abilities import upscales
from engine.bundle.reader import Bundle
from engine.cascade import Cascade, CascadeBatch
from engine.checks import count_of
from engine.cli.contents import told
from engine.cli.inputs import InputValue, options, raw_inputs
from engine.cli.output import check_results, echo_fields, finish, setting_line
from engine.cli.terminal import shows_progress
from engine.commands import command
from engine.errors import ArgumentError
from engine.resolve import SETTING_OPTIONS
from engine.stages import followed, name_next

Command = TypeVar("Command", bound=Callable[..., Any])


class StageOptions(click.ParamType):
    """NAME=VALUE of a stage, several with commas between them."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        pairs = [InputValue().convert(word, param, ctx) for word in str(value).split(",")]
        return dict(pairs)


CASCADE = options(
    click.option("--cascade", "whole", is_flag=True, help="Go on with the bundles that BUNDLE names next, stage by stage."),
    click.option(
        "--stage",
        "stages",
        type=StageOptions(),
        metavar="NAME=VALUE,...",
        multiple=True,
        help="With it: options of the stage after the first (steps=10,t_start=300,noise_level=50); again for each.",
    ),
)


@click.command(short_help="Name the bundle that goes on with a bundle's images.")
@click.argument("bundle")
@click.argument("following", required=False, metavar="NEXT")
@click.option("--steps", type=int, help="Of NEXT. Default of each: what NEXT records.")
@click.option("--t-start", type=int, help="Of NEXT, where it starts from the image: the timestep that it is noised to.")
@click.option("--noise-level", type=int, help="A timestep of NEXT: the noise on the picture that it takes; 0 is none.")
@click.option("--guidance", type=float, help="Of NEXT.")
@click.option("--remove", is_flag=True, help="Let BUNDLE name none.")
def cascade(bundle: str, following: str | None, remove: bool, **recorded: Any) -> None:
    """Write into BUNDLE that NEXT, a bundle beside it, goes on with its images: an upsampler, or a model of larger images.

    `diffusevae sample BUNDLE --cascade` then samples from both. NEXT may name another, by the same command.
    """
    if remove == (following is not None):
        raise ArgumentError("cascade: expected either NEXT or --remove; give one of the two")
    name_next(bundle, following, **recorded)
    for line in stage_lines(Bundle.open(bundle)):
        click.echo(line)


def stage_lines(bundle: Bundle) -> list[str]:
    """The stages of a bundle's cascade: what each takes and makes."""
    stages, lines = followed(bundle), []
    for index, stage in enumerate(stages):
        manifest = stage.manifest
        size = " x ".join(map(str, manifest.pipeline.image_shape[1:]))
        how = "" if index == 0 else ", of a picture" if upscales(manifest) else ", image to image"
        spec = stages[index - 1].manifest.next if index else None
        options = [] if spec is None else told(vars(spec))
        lines.append(f"stage {index + 1}  {', '.join([f'{stage.path.name}: {size}{how}', *options])}")
    return lines


def note_next(bundle: Bundle) -> None:
    """Say that a bundle is the first of a cascade, where it is sampled alone."""
    if bundle.manifest.next is not None:
        line = command("sample", str(bundle.path), "--cascade")
        click.echo(f"note: {bundle.manifest.next.bundle} goes on with these images; have both with: {line}", err=True)


def sample_cascade(bundle: Bundle, n: int | None, stages: tuple[dict[str, Any], ...], given: dict[str, Any]) -> None:
    """Sample all stages of a cascade in one call, and write the last one's images."""
    bundles = followed(bundle)
    machine = {name: given.pop(name) for name in ("backend", "precision", "threads")}
    run = {name: given.pop(name) for name in (*SETTING_OPTIONS, "setting", "seed", "prior")}
    with Cascade(bundles, **machine, max_batch=given.pop("batch")) as opened:
        inputs = raw_inputs(given, opened.inputs)
        seed, last = run["seed"], opened[-1]
        count = count_of(n) or (len(seed) if isinstance(seed, list) else 1)
        check_results(last.bundle.manifest, count, seed, **given)
        progress = not given["as_json"] and shows_progress()
        batch = opened.sample(n, **run, **inputs, stages=stages or None, progress=progress)
        if not given["as_json"]:
            _report(opened, batch, err=given["out"] == "-")
        finish(last, batch, **given)


def _report(opened: Cascade, batch: CascadeBatch, err: bool) -> None:
    """A line for each stage."""
    lines = {
        f"stage {index + 1}": f"{sampler.bundle.manifest.name}: {setting_line(part)}, {part.timings.total_ms:.1f} ms"
        for index, (sampler, part) in enumerate(zip(opened.samplers, batch.stages, strict=True))
    }
    echo_fields(lines, err=err)
