"""Cascades on the command line: `diffusevae cascade`, which names the bundle after a bundle, and `sample --cascade`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from engine.abilities import upscales
from engine.bundle.links import AllowLinks
from engine.bundle.reader import Bundle
from engine.cascade import NOISE_LEVEL, Cascade, CascadeBatch
from engine.checks import count_of
from engine.cli.contents import told
from engine.cli.inputs import LINKS, InputValue, options, raw_inputs, typed_inputs
from engine.cli.options import check_start, take_canvas
from engine.cli.output import check_out, check_results, echo_fields, finish, setting_line
from engine.cli.terminal import shows_progress
from engine.commands import command
from engine.errors import ArgumentError, did_you_mean
from engine.resolve import SETTING_OPTIONS
from engine.stages import followed, name_next
from engine.text import TEXT

Command = TypeVar("Command", bound=Callable[..., Any])


StageValues = dict[str, str]  # of one stage: each option as it was written
# A comma before NAME= begins the next option; any other is one of a list's.
NEXT_OPTION = re.compile(r",(?=[^\W\d]\w*=)")


class StageOptions(click.ParamType):
    """NAME=VALUE of a stage, several with commas between them; a VALUE may be a list with commas of its own."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> StageValues:
        found: StageValues = {}
        for word in NEXT_OPTION.split(str(value)):
            name, equals, text = word.partition("=")
            if not (equals and name.isidentifier() and text):
                self.fail(f"{word!r} is not NAME=VALUE: steps=10.", param, ctx)
            if name in found:
                self.fail(f"{name} is given twice; leave one out.", param, ctx)
            found[name] = text
        return found


CASCADE = options(
    click.option("--cascade", "whole", is_flag=True, help="Go on with the bundles that BUNDLE names next, stage by stage."),
    click.option(
        "--stage",
        "stages",
        type=StageOptions(),
        metavar="NAME=VALUE,...",
        multiple=True,
        help="With it: options and inputs of the stage after the first (steps=10,t_start=300,noise_level=50); again for "
        "each.",
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
@LINKS
def cascade(
    bundle: str, following: str | None, remove: bool, allow_links: tuple[str, ...], **recorded: Any
) -> None:
    """Write into BUNDLE that NEXT, a bundle beside it, goes on with its images: an upsampler, or a model of larger images.

    `diffusevae sample BUNDLE --cascade` then samples from both. NEXT may name another, by the same command.
    """
    if remove == (following is not None):
        raise ArgumentError("cascade: expected either NEXT or --remove; give one of the two")
    name_next(bundle, following, allow_links=allow_links, **recorded)
    for line in stage_lines(Bundle.open(bundle, allow_links), allow_links):
        click.echo(line)


def stage_lines(bundle: Bundle, allow_links: AllowLinks = False) -> list[str]:
    """The stages of a bundle's cascade: what each takes and makes."""
    stages, lines = followed(bundle, allow_links), []
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


def sample_cascade(bundle: str, n: int | None, stages: Sequence[StageValues], given: dict[str, Any]) -> None:
    """Sample all stages of a cascade in one call, and write the last one's images."""
    check_out(given["out"], given["as_json"])
    allow_links = given.pop("allow_links")
    bundles = followed(take_canvas(Bundle.open(bundle, allow_links), given), allow_links)
    if given["with_start"]:  # the images are the last one's
        check_start(bundles[-1])
    later = stage_options(stages, bundles)
    machine = {name: given.pop(name) for name in ("backend", "precision", "threads")}
    run = {name: given.pop(name) for name in (*SETTING_OPTIONS, "setting", "seed", "prior")}
    with Cascade(bundles, **machine, max_batch=given.pop("batch")) as opened:
        inputs = raw_inputs(given, opened.inputs)
        seed, last = run["seed"], opened[-1]
        count = count_of(n) or (len(seed) if isinstance(seed, list) else 1)
        check_results(last.bundle.manifest, count, seed, **given)
        progress = not given["as_json"] and shows_progress()
        batch = opened.sample(n, **run, **inputs, stages=later or None, progress=progress)
        if not given["as_json"]:
            _report(opened, batch, err=given["out"] == "-")
        finish(last, batch, **given)


def stage_options(stages: Sequence[StageValues], bundles: Sequence[Bundle]) -> list[dict[str, Any]]:
    """The options of every stage after the first, none where none are given."""
    if stages and len(stages) != len(bundles) - 1:
        raise ArgumentError(
            f"stage: found options of {len(stages)} stages, expected those of the {len(bundles) - 1} after the first, or "
            "none; give --stage once for each"
        )
    return [_stage_options(values, bundles[index], index + 1) for index, values in enumerate(stages, 1)]


def _stage_options(values: StageValues, stage: Bundle, index: int) -> dict[str, Any]:
    """The options of a stage, counted from 1, as its verb takes them: inputs as --input has them, the setting as the
    command's own options, which know what is a number, a name or a list."""
    specs = stage.manifest.inputs
    inputs = {spec.name for spec in specs}
    kinds: dict[str, click.ParamType] = {NOISE_LEVEL: click.INT, TEXT: click.STRING}
    for param in click.get_current_context().command.params:
        if param.name in (*SETTING_OPTIONS, "setting", "seed", "prior"):
            kinds[param.name] = param.type
    found: dict[str, Any] = {}
    try:
        for name, text in values.items():
            if name in inputs:
                found |= typed_inputs([InputValue().convert(f"{name}={text}", None, None)], specs)
            elif name in kinds:
                found[name] = kinds[name].convert(text, None, None)
            else:
                known = (*kinds, *inputs)
                raise ArgumentError(f"found {name}, expected one of {', '.join(known)}.{did_you_mean(name, known)}")
    except (ArgumentError, click.BadParameter) as error:
        raise ArgumentError(f"stage {index}: {error}") from error
    return found


def _report(opened: Cascade, batch: CascadeBatch, err: bool) -> None:
    """A line for each stage."""
    lines = {
        f"stage {index + 1}": f"{sampler.bundle.manifest.name}: {setting_line(part)}, {part.timings.total_ms:.1f} ms"
        for index, (sampler, part) in enumerate(zip(opened.samplers, batch.stages, strict=True))
    }
    echo_fields(lines, err=err)
