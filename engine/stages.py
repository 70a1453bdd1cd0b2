"""Stages of a cascade: which bundles they are, whether each fits the one before, and how it takes that one's images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from engine import abilities, augmentation, checks, kernels
from engine.bundle.fields import FILE_NAME
from engine.bundle.following import NextSpec
from engine.bundle.inputs import InputSpec
from engine.bundle.limits import MAX_STAGES
from engine.bundle.links import AllowLinks
from engine.bundle.manifest import Manifest
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_next
from engine.commands import command
from engine.errors import ArgumentError, BundleError, CascadeError
from engine.pipeline import table_of
from engine.resolve import setting_of
from engine.result import F32, Setting

RECORDED = tuple(field.name for field in fields(NextSpec) if field.name not in ("bundle", "source"))


def followed(first: Bundle, allow_links: AllowLinks = False) -> list[Bundle]:
    """A bundle and those that it and its followers name, each beside the one that names it; CascadeError where one is
    missing, another than was named, or named twice."""
    stages, names = [first], {place(first).name}
    while (spec := stages[-1].manifest.next) is not None:
        here = place(stages[-1])
        if spec.bundle in names:
            raise CascadeError(
                f"{here}: found {spec.bundle} as the next bundle, which comes before it, expected one that does not lead "
                f"back; {_cut(here)}"
            )
        if len(stages) == MAX_STAGES:
            raise CascadeError(
                f"{stages[0].path}: found a cascade of more than {MAX_STAGES} bundles, expected at most so many; "
                f"{_cut(here)}"
            )
        stages.append(_named(here, spec, allow_links))
        names.add(spec.bundle)
    return stages


def place(bundle: Bundle) -> Path:
    """The folder of a bundle with the folder that it is in, also where it was opened as "."; links are not followed."""
    return Path(os.path.abspath(bundle.path))


def _named(here: Path, spec: NextSpec, allow_links: AllowLinks) -> Bundle:
    """The bundle that the one in `here` names next."""
    try:
        found = Bundle.open(here.parent / spec.bundle, allow_links)
    except BundleError as error:
        raise CascadeError(f"the next bundle of {here}: {error}") from error
    if found.manifest.source.sha256 != spec.source:
        raise CascadeError(
            f"{found.path}: found a bundle of the checkpoint {found.manifest.source.sha256}, expected {spec.source}, which "
            f"{here.name} names as its next; put that bundle there, or {_again(here, spec.bundle)}"
        )
    return found


def _again(here: Path, name: str) -> str:
    return f"name another with: {command('cascade', str(here), str(here.parent / name))}"


def _cut(here: Path) -> str:
    return f"end it there with: {command('cascade', here, '--remove')}"


def check_fits(before: Manifest, after: Manifest) -> None:
    """CascadeError where a stage cannot take the images of the one before it."""
    made, taken = before.pipeline.image_shape, taken_shape(after)
    if made[0] != taken[0]:
        raise CascadeError(
            f"{after.name}: found that it takes images of {taken[0]} channels, expected {made[0]}, as {before.name} makes "
            "them; choose bundles of the same channels"
        )
    if made[1] > taken[1] or made[2] > taken[2]:
        raise CascadeError(
            f"{after.name}: found that it takes images of {taken[1]} x {taken[2]}, expected at least the {made[1]} x "
            f"{made[2]} that {before.name} makes: a cascade enlarges; give them in the other order"
        )


def taken_shape(manifest: Manifest) -> tuple[int, int, int]:
    """[C, H, W] of the images that a stage takes; CascadeError for a bundle that takes none."""
    if abilities.upscales(manifest):
        return abilities.upscaled_input(manifest, "upscale").picture_shape
    if not abilities.takes_images(manifest):
        raise CascadeError(
            f"{manifest.name}: found no way for it to take an image, expected exactly one input that is a picture, a state "
            "that is the image, or an encoder to it; choose another bundle for a stage after the first"
        )
    return abilities.picture_shape(manifest)


def inputs_of(manifest: Manifest, stage: int) -> tuple[InputSpec, ...]:
    """The inputs of a stage, counted from 0, that a caller may give: all but, after the first, the picture and its level."""
    if stage == 0:
        return manifest.inputs
    made = {manifest.augmentation.input} if manifest.augmentation else set()
    if abilities.upscales(manifest):
        made.add(abilities.upscaled_input(manifest, "upscale").name)
    return tuple(spec for spec in manifest.inputs if spec.name not in made)


def all_inputs(manifests: Sequence[Manifest]) -> tuple[InputSpec, ...]:
    """Those of all stages, each name once: in the range that every stage takes, and drawn where none needs it given.

    CascadeError for one of several dtypes or shapes, or that no value suits.
    """
    named: dict[str, InputSpec] = {}
    for stage, manifest in enumerate(manifests):
        for spec in inputs_of(manifest, stage):
            found = named.get(spec.name)
            named[spec.name] = spec if found is None else _shared(found, spec, manifest)
    return tuple(named.values())


def _shared(found: InputSpec, spec: InputSpec, manifest: Manifest) -> InputSpec:
    """An input of earlier stages as this one takes it too."""
    if (found.dtype, _sizes(found)) != (spec.dtype, _sizes(spec)):
        raise CascadeError(
            f"{manifest.name}: found that it takes {spec}, expected {found}, as a stage before it has it: a caller gives "
            "one for both; choose bundles that agree"
        )
    limits = [one.range for one in (found, spec) if one.range is not None]
    low, high = max((low for low, _ in limits), default=0), min((high for _, high in limits), default=0)
    if low > high:
        raise CascadeError(
            f"{manifest.name}: found that it takes {spec.name} in {_limits(spec)}, expected values that the stages before "
            f"it take too, in {_limits(found)}; choose bundles that agree"
        )
    return replace(
        found,
        range=(low, high) if limits else None,
        draw=found.draw if spec.draw is not None else None,
        picture=found.picture if spec.picture == found.picture else None,
    )


def _limits(spec: InputSpec) -> str:
    return "any range" if spec.range is None else "{:g} .. {:g}".format(*spec.range)


def _sizes(spec: InputSpec) -> list[int | None]:
    """The sizes of one sample, None where they are free."""
    return [size if isinstance(size, int) else None for size in spec.sample]


def enlarged(manifest: Manifest, images: Any) -> F32:
    """Images of a size or a smaller one as a stage takes them: float32 [N, C, H, W] in [0, 1], bilinear."""
    channels, height, width = taken_shape(manifest)
    array = np.asarray(images)
    found = array.shape[-3:-1] if array.dtype == np.uint8 else array.shape[-2:]
    if array.ndim < 3 or not all(found) or found[0] > height or found[1] > width:
        raise ArgumentError(
            f"images has shape {list(array.shape)}; expected images of at most {height} x {width}, which {manifest.name} "
            "takes. Make them smaller."
        )
    return kernels.enlarge(checks.images_of(array, (channels, int(found[0]), int(found[1]))), height, width)


def starts_from_image(manifest: Manifest) -> bool:
    """Whether a stage after the first starts its chain from the image, rather than take it as an input."""
    return not abilities.upscales(manifest)


def stage_setting(manifest: Manifest, options: Mapping[str, Any]) -> Setting:
    """The setting of a stage after the first; its noise level is none of it."""
    chain = {name: value for name, value in options.items() if name != "noise_level"}
    return setting_of(manifest, chain, has_image=starts_from_image(manifest))


def lacks_start(manifest: Manifest, setting: Setting) -> bool:
    """Whether a stage after the first would know nothing of the image."""
    return starts_from_image(manifest) and abilities.forgets(manifest, setting.t_start)


def recorded(before: Manifest, after: Manifest) -> dict[str, Any]:
    """The options that a bundle records for the one that it names next; none for another."""
    spec = before.next
    if spec is None or spec.source != after.source.sha256:
        return {}
    return {name: getattr(spec, name) for name in RECORDED if getattr(spec, name) is not None}


def recorded_setting(before: Manifest, after: Manifest) -> Setting:
    """The setting of a stage after the first whose caller says nothing."""
    return stage_setting(after, recorded(before, after))


def merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A caller's options over recorded ones: timesteps say themselves how many steps there are, and from where."""
    listed = given.get("timesteps") is not None
    kept = {name: value for name, value in base.items() if not (listed and name in ("steps", "t_start"))}
    return {**kept, **{name: value for name, value in given.items() if value is not None}}


def name_next(
    path: str | os.PathLike[str],
    following: str | os.PathLike[str] | None,
    *,
    allow_links: AllowLinks = False,
    **recorded: Any,
) -> None:
    """Write into the bundle at `path` that the one at `following` goes on with its images; None: that none does.

    following    a folder beside it
    allow_links  as for `Sampler`, of all bundles that are named
    recorded     of RECORDED, the options that it is sampled with there unless a caller says otherwise
    CascadeError where the two do not fit or lead back to the first; ArgumentError for a folder elsewhere or an option that
    the bundle cannot have; BundleError where one of them is refused or cannot be written.
    """
    if following is None:
        write_next(path, None)
        return
    first, after = Bundle.open(path, allow_links), Bundle.open(following, allow_links)
    here, there = place(first), place(after)
    if here.parent != there.parent or not FILE_NAME.fullmatch(there.name):
        raise ArgumentError(
            f"the next bundle: found {there}, expected a folder beside {here} whose name is of letters, digits, '.', '_' "
            "and '-', so that both can be moved together; move or rename it"
        )
    check_fits(first.manifest, after.manifest)
    options = {name: recorded.get(name) for name in RECORDED}
    augmentation.checked_level(after.manifest, options["noise_level"])
    table_of(after.manifest, after.manifest.schedule.schedule(), stage_setting(after.manifest, options))
    spec = NextSpec(bundle=there.name, source=after.manifest.source.sha256, **options)
    named = replace(first, manifest=replace(first.manifest, next=spec))
    check_stages([stage.manifest for stage in followed(named, allow_links)])
    write_next(path, spec)


def check_stages(manifests: Sequence[Manifest]) -> None:
    """CascadeError for fewer bundles than two, too many, ones that do not fit, or that differ in an input of one name."""
    if not 2 <= len(manifests) <= MAX_STAGES:
        raise CascadeError(
            f"found a cascade of {len(manifests)} bundles, expected 2 .. {MAX_STAGES}; give several, or one that names the "
            f"next: {command('cascade', 'BUNDLE', 'NEXT')}"
        )
    for before, after in pairwise(manifests):
        check_fits(before, after)
    all_inputs(manifests)


def check_vocabularies(bundles: Sequence[Bundle]) -> None:
    """ArgumentError for stages that would read one text differently."""
    specs = (bundle.manifest.text for bundle in bundles)
    if len({(spec.input, spec.sha256, spec.lowercase) for spec in specs if spec is not None}) > 1:
        raise ArgumentError(
            f"{bundles[0].path}: found stages with different vocabularies, expected one for all that read text; use each "
            "bundle by itself"
        )
