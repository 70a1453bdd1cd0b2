"""Guides from files: classifiers of guided-diffusion, or one off the shelf and an adapter (PPAP) for each range of steps.

What a bundle records of them: the first file as the second one of its source, and all by name, SHA-256 and timesteps in
`architecture`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import ArgumentError, CheckpointError
from export.classifier import Guided, read_classifier
from export.context import Watch
from export.experts import HEAD, SCALE, experts, is_base, uncounted
from export.families.base import Model, Source
from export.guide_options import GuideOptions, Range, ranges_of
from export.guides import OwnGuide, takes_guide, with_guides
from export.models.experts import ViT
from export.read.checkpoint import Checkpoint, as_float32, read_checkpoint
from export.read.wrappers import see_through


@dataclass(frozen=True)
class FoundGuide:
    """A guide, the file that makes it this one, and what it is, for people."""

    guide: OwnGuide
    checkpoint: Checkpoint
    line: str
    notes: tuple[str, ...] = ()

    @property
    def entry(self) -> dict[str, Any]:
        """What `architecture` records of it."""
        name, timesteps = self.checkpoint.path.name, list(self.guide.timesteps or ())
        return {"file": name, "sha256": self.checkpoint.sha256, "timesteps": timesteps, "is": self.line}


def with_guide_files(model: Model, source: Source, said: GuideOptions, watch: Watch) -> tuple[Model, Source]:
    """The model with the guides of files; the first file is recorded as the source's second where there is none.

    ArgumentError for timesteps that are no range for each guide; CheckpointError for files that are none, or that are of
    other images, classes or noise than the model's.
    """
    assert said.guide, "there is one"
    of, ranges = Guided.by(model), ranges_of(said, model.schedule.T)
    base = read_checkpoint(said.guide[0]) if said.guide_adapter else None
    found = list(_classifiers(said, of, ranges) if base is None else _experts(base, said, of, ranges))
    for one, (low, high) in zip(found, ranges, strict=True):
        watch.note(f"guide{'' if len(found) == 1 else f' of t {low} to {high}'}: {one.line}")
    scale, notes = _scale(model, said)
    notes = list(dict.fromkeys([*model.notes, *(note for one in found for note in one.notes), *notes]))
    entries = [one.entry for one in found] if base is None else [_base_entry(base), *(one.entry for one in found)]
    architecture = {**model.architecture, "guides": entries}
    model = dataclasses.replace(model, notes=notes, architecture=architecture)
    model = with_guides(model, [one.guide for one in found], scale=scale)
    first = base or found[0].checkpoint
    return model, source if source.other else dataclasses.replace(source, other=first)


def _scale(model: Model, said: GuideOptions) -> tuple[float, list[str]]:
    """The scale that the bundle records, and why that is 0 where it is."""
    if said.guide_scale is not None:
        return said.guide_scale, []
    if takes_guide(model):
        published = 1.0 if model.guide_scale is None else model.guide_scale
        return SCALE if said.guide_adapter else published, []
    return 0.0, [
        f"the recorded method {model.defaults['method']} takes no guide, so that guide_scale 0 is recorded: sample with "
        "--method ddim_clipped or ddpm and a --guide-scale"
    ]


# ---- classifiers of guided-diffusion ---------------------------------------------------------------


def _classifiers(said: GuideOptions, of: Guided, ranges: tuple[Range, ...]) -> Iterator[FoundGuide]:
    for path, timesteps in zip(said.guide or (), ranges, strict=True):
        found = read_classifier(path, of, said)
        guide = dataclasses.replace(found.guide(of), timesteps=timesteps)
        yield FoundGuide(guide, found.checkpoint, found.line, found.notes)


# ---- experts ---------------------------------------------------------------------------------------


def _base_entry(base: Checkpoint) -> dict[str, Any]:
    return {"file": base.path.name, "sha256": base.sha256, "is": "the classifier that the others adapt"}


def _experts(base: Checkpoint, said: GuideOptions, of: Guided, ranges: tuple[Range, ...]) -> Iterator[FoundGuide]:
    """The guide of each adapter; all are of one base."""
    tensors = _weights(base)
    if not is_base(tensors):
        raise CheckpointError(
            f"{base.path}: found neither a ResNet of torchvision nor a ViT of timm, expected one of the two as the --guide "
            "that adapters belong to; leave --guide-adapter out for a classifier of guided-diffusion"
        )
    heads = _heads(tensors, said)
    for path, timesteps in zip(said.guide_adapter or (), ranges, strict=True):
        adapter = read_checkpoint(path)
        try:
            (guide,) = experts(tensors, [_weights(adapter)], of.schedule.T, heads=heads)
        except CheckpointError as error:
            raise CheckpointError(f"{path} beside {base.path}: {error}") from error
        _check_fits(guide, of, base.path)
        kind = "ViT" if isinstance(guide.classifier, ViT) else "ResNet"
        line = f"{base.path.name}, a {kind} of {guide.classes} classes, adapted by {path.name}"
        yield FoundGuide(dataclasses.replace(guide, timesteps=timesteps), adapter, line, _assumed(base, kind, said))


def _weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Its tensors in float32, without the counters of batch norms, which are whole numbers."""
    return as_float32(uncounted(see_through(checkpoint.tensors, checkpoint.path).tensors), checkpoint.path)


def _heads(tensors: dict[str, torch.Tensor], said: GuideOptions) -> int | None:
    """The attention heads that were said; ArgumentError for what is said of classifiers of guided-diffusion alone."""
    useless = {"--guide-head-channels": said.guide_head_channels, "--guide-depth": said.guide_depth}
    if "pos_embed" not in tensors:
        useless["--guide-heads"] = said.guide_heads
    given = next((flag for flag, value in useless.items() if value is not None), None)
    if given is not None:
        raise ArgumentError(
            f"{given}: found it beside --guide-adapter, expected --guide-heads of a ViT at most, as the weights tell the "
            "rest; leave it out"
        )
    return said.guide_heads


def _assumed(base: Checkpoint, kind: str, said: GuideOptions) -> tuple[str, ...]:
    if kind != "ViT" or said.guide_heads is not None:
        return ()
    return (f"{base.path.name}: heads of {HEAD} channels are those of timm's ViTs, which no weight confirms; --guide-heads "
            "otherwise",)  # fmt: skip


def _check_fits(guide: OwnGuide, of: Guided, path: Path) -> None:
    """Refuse a classifier of other images or classes than the model's."""
    channels, *size = of.state
    if channels != 3:
        raise CheckpointError(
            f"{path}: found a classifier of RGB images, expected one of {channels} channels, those of the model's state; "
            "adapters cannot guide this model"
        )
    if of.classes not in (None, guide.classes):
        raise CheckpointError(
            f"{path}: found a classifier of {guide.classes} classes, expected {of.classes}, as the model has: one label is "
            "for both; give another --guide"
        )
    network = guide.classifier
    if isinstance(network, ViT) and size != [network.size, network.size]:
        raise CheckpointError(
            f"{path}: found a ViT of {network.size} x {network.size} pixels, by the positions that it knows, expected "
            f"{size[0]} x {size[1]}, as the model makes; give another --guide"
        )
