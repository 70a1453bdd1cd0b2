"""Guided-diffusion's classifiers: what their keys and shapes tell, and the rest from flags or from the published ones.

A classifier's file holds the contracting half of a UNet and a pool. Where residual blocks halve the map, they look like any
other, so that how many there are on a level follows from widths, attention and the positions of the pool together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from engine.bundle.training import ScheduleSpec
from engine.errors import ArgumentError, CheckpointError
from export.families.adm.keys import STEM, TIME, is_classifier
from export.families.adm.published import CLASSIFIERS, PublishedClassifier
from export.families.base import Model
from export.graphs.roles import Role, tensor
from export.guide_options import GuideOptions
from export.guides import EXACT, OwnGuide, classes_of, label_of
from export.models.graphs import TimestepTable
from export.models.openai.classifier import ADAPTIVE, ATTENTION, SPATIAL, SPATIAL_V2, Classifier, ClassifierSpec
from export.models.openai.spec import OpenAIUNetSpec
from export.models.unet import sinusoid
from export.models.unset import shapes_of, unset
from export.read.checkpoint import Checkpoint, as_float32, read_checkpoint
from export.read.parts import require, size_of
from export.read.wrappers import see_through

Tensors = Mapping[str, torch.Tensor]
HEAD = 64  # channels of each head in every classifier that the reference makes
_size = partial(size_of, kind="a classifier", source="guided-diffusion")
# Of a pool: the key by which it is known, and the layer that makes the classes.
POOLS = {
    ATTENTION: ("out.2.positional_embedding", "out.2.c_proj.weight"),
    SPATIAL_V2: ("out.1.weight", "out.3.weight"),
    SPATIAL: ("out.2.weight", "out.2.weight"),
    ADAPTIVE: ("out.3.weight", "out.3.weight"),
}


@dataclass(frozen=True)
class Guided:
    """What a classifier must fit: the model's state [C, H, W], its classes (None: no labels) and its noise.

    rescaled: what the network is given for each timestep, [T], where that is not the timestep itself
    """

    state: tuple[int, int, int]
    classes: int | None
    schedule: ScheduleSpec
    rescaled: torch.Tensor | None = None

    @classmethod
    def by(cls, model: Model) -> Guided:
        """The same of a model."""
        return cls(model.wiring.state.shape, classes_of(label_of(model)), model.schedule, model.rescaled)


@dataclass(frozen=True)
class FoundClassifier:
    """A classifier whose architecture is settled; published: its name where its shapes are a published one's."""

    checkpoint: Checkpoint
    spec: ClassifierSpec
    tensors: Tensors
    published: str | None
    notes: tuple[str, ...]

    @property
    def line(self) -> str:
        """What it is, for people."""
        unet = self.spec.unet
        mults = ",".join(f"{mult:g}" for mult in unet.channel_mult)
        return (
            f"{self.published or self.checkpoint.path.name}, a classifier of {self.spec.classes} classes: encoder of "
            f"{unet.model_channels} channels x {mults}, {unet.num_res_blocks} blocks a level, {self.spec.pool} pool"
        )

    def guide(self, of: Guided) -> OwnGuide:
        """The guide that it is, given what the model's network is given for each timestep."""
        network = unset(lambda: Classifier(self.spec))
        network.load_state_dict(as_float32(self.tensors, self.checkpoint.path), assign=True)
        network.eval().requires_grad_(False)
        times = torch.arange(of.schedule.T) if of.rescaled is None else of.rescaled
        base, last = self.spec.unet.model_channels, of.schedule.T - 1.0
        table = TimestepTable(sinusoid(times, base, "openai"), network.time_embed, network.projections)
        takes, gives = tensor("timesteps", ("steps",), "int64", (0.0, last)), tensor("rows", ("steps", network.row_width))
        return OwnGuide(network, self.spec.classes, Role("guide_table", table, (takes,), (gives,), compute=EXACT))


def read_classifier(path: Path, of: Guided, said: GuideOptions) -> FoundClassifier:
    """The classifier in a file, for this model; CheckpointError for what is none, or for other images, classes or noise."""
    return settle_classifier(read_checkpoint(path), of, said)


def settle_classifier(checkpoint: Checkpoint, of: Guided, said: GuideOptions) -> FoundClassifier:
    """The same, of a checkpoint."""
    path = checkpoint.path
    if not is_classifier(checkpoint.tensors):
        raise CheckpointError(
            f"{path}: found no classifier of guided-diffusion, expected one for --guide: the contracting half of a UNet and "
            "a pool, such as 64x64_classifier.pt; a ResNet or ViT off the shelf needs --guide-adapter beside it, and "
            "export.guides takes any other torch classifier, from Python"
        )
    keys = see_through(checkpoint.tensors, path)
    shape = _shape(keys.tensors, path, of, said)
    name = next((name for name, known in CLASSIFIERS.items() if known.shape == replace(shape, size=known.shape.size)), None)
    spec, notes = _with_heads(shape, said, path, name)
    expected = shapes_of(unset(lambda: Classifier(spec)))
    prefix = keys.prefix("time_embed.").removesuffix("time_embed.")
    require(keys.tensors, expected, path, prefix, f"a classifier of {spec.classes} classes with {spec.pool} pool")
    _check_fits(spec, of, path, None if name is None else CLASSIFIERS[name], name)
    return FoundClassifier(checkpoint, spec, keys.tensors, name, notes)


def _check_fits(spec: ClassifierSpec, of: Guided, path: Path, known: PublishedClassifier | None, name: object) -> None:
    """Refuse a classifier that was trained on something else than the model makes."""
    channels, classes = of.state[0], of.classes
    if spec.unet.in_channels != channels:
        raise CheckpointError(
            f"{path}: found a classifier of {spec.unet.in_channels} channels, expected {channels}, those of the model's "
            "state; give another --guide"
        )
    if classes is not None and spec.classes != classes:
        raise CheckpointError(
            f"{path}: found a classifier of {spec.classes} classes, expected {classes}, as the model has: one label is for "
            "both; give another --guide"
        )
    if known is not None and (known.noise_schedule, known.T) != (of.schedule.recipe, of.schedule.T):
        raise CheckpointError(
            f"{path}: found {name}, which was trained on noise of a {known.noise_schedule} schedule of {known.T} timesteps, "
            f"expected {of.schedule.recipe} and {of.schedule.T}, as the model; give another --guide"
        )


def _shape(tensors: Tensors, path: Path, of: Guided, said: GuideOptions) -> ClassifierSpec:
    """What the weights tell of a classifier, without heads."""
    size = of.state[1:]
    pool = next((pool for pool, (key, _) in POOLS.items() if key in tensors), ATTENTION)
    base, inputs = _size(tensors, TIME, 1, path), _size(tensors, STEM, 1, path)
    classes, stem = _size(tensors, POOLS[pool][1], 0, path), _size(tensors, STEM, 0, path)
    tokens = _size(tensors, "out.2.positional_embedding", 1, path) - 1 if pool == ATTENTION else None
    levels, blocks, by_block = _settled(tensors, path, size, tokens, said.guide_depth)
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [_width(tensors, first, path) for first in firsts]
    scaled = _size(tensors, "input_blocks.1.0.emb_layers.1.weight", 0, path) == 2 * widths[0]
    unet = OpenAIUNetSpec(
        in_channels=inputs,
        out_channels=classes,
        model_channels=base,
        channel_mult=tuple(width // base if width % base == 0 else width / base for width in widths),
        num_res_blocks=blocks,
        attention_factors=tuple(1 << level for level, first in enumerate(firsts) if _attends(tensors, first)),
        num_heads=None,
        num_head_channels=None,
        scale_shift=scaled,
        resample_blocks=by_block,
        stem_channels=None if stem == base else stem,
    )
    return ClassifierSpec(unet, pool, size)


def _settled(
    tensors: Tensors, path: Path, size: tuple[int, int], tokens: int | None, said: int | None
) -> tuple[int, int, bool]:
    """Levels, residual blocks of each, and whether residual blocks halve the map."""
    found = [way for way in _ways(tensors, path) if said in (None, way[1])]
    if not found:
        raise CheckpointError(
            f"{path}: found input_blocks that are no levels of equally many residual blocks"
            f"{'' if said is None else f', {said} each'}, expected some; the file is incomplete or not a classifier of "
            "guided-diffusion" + ("" if said is None else ", or --guide-depth is another")
        )
    if tokens is not None:
        fits = [way for way in found if (size[0] >> (way[0] - 1)) * (size[1] >> (way[0] - 1)) == tokens]
        if not fits:
            sides = " or ".join(str(math.isqrt(tokens) << (way[0] - 1)) for way in found)
            raise CheckpointError(
                f"{path}: found a classifier of images of {sides} pixels a side, by the {tokens} positions of its pool, "
                f"expected {size[0]} x {size[1]}, as the model makes; give another --guide"
            )
        found = fits
    if len(found) > 1:
        ways = " or ".join(f"{way[1]} residual blocks on each of {way[0]} levels" for way in found)
        raise CheckpointError(
            f"{path}: found input_blocks that may be {ways}, expected to be told: give --guide-depth as it was trained "
            "(classifier_depth)"
        )
    return found[0]


def _ways(tensors: Tensors, path: Path) -> Iterator[tuple[int, int, bool]]:
    """The ways in which the input blocks may be levels."""
    numbers = {int(key.split(".")[1]) for key in tensors if key.startswith("input_blocks.")}
    count = max(numbers, default=-1) + 1
    if numbers != set(range(count)) or count < 2:
        return
    convs = [i for i in range(count) if f"input_blocks.{i}.0.op.weight" in tensors]
    for levels in range(1, count // 2 + 1):
        each, rest = divmod(count, levels)
        halves = [level * each for level in range(1, levels)]
        if rest or (convs and convs != halves):
            continue
        by_block = not convs and levels > 1
        if all(_is_level(tensors, path, each * level, each, last=level == levels - 1, by_block=by_block)
               for level in range(levels)):  # fmt: skip
            yield levels, each - 1, by_block


def _is_level(tensors: Tensors, path: Path, begin: int, each: int, *, last: bool, by_block: bool) -> bool:
    """Whether these blocks are of one width, with attention behind all or none, and one that halves behind them."""
    blocks, half = range(begin + 1, begin + each), begin + each
    widths = {_width(tensors, i, path) for i in (*blocks, *([half] if by_block and not last else []))}
    widened = [i for i in blocks if f"input_blocks.{i}.0.skip_connection.weight" in tensors]
    alike = len({_attends(tensors, i) for i in blocks}) == 1 and len(widths) == 1 and set(widened) <= {begin + 1}
    plain = not _attends(tensors, half) and f"input_blocks.{half}.0.skip_connection.weight" not in tensors
    return alike and (last or plain)


def _with_heads(
    shape: ClassifierSpec, said: GuideOptions, path: Path, name: str | None
) -> tuple[ClassifierSpec, tuple[str, ...]]:
    """The heads that were said, or those of every classifier that the reference makes."""
    if said.guide_heads is not None and said.guide_head_channels is not None:
        raise ArgumentError("--guide-heads, --guide-head-channels: found both, expected one of the two; leave the other out")
    widths = {shape.unet.widths[-1]} | {w for i, w in enumerate(shape.unet.widths) if 1 << i in shape.unet.attention_factors}
    count = said.guide_heads or said.guide_head_channels or HEAD
    if any(width % count for width in widths):
        told = said.guide_heads is not None or said.guide_head_channels is not None
        raise (ArgumentError if told else CheckpointError)(
            f"{path}: found attention over {', '.join(map(str, sorted(widths)))} channels, expected multiples of {count}"
            f"{' as was said' if told else ', the width of a head where none is said'}; give --guide-heads or "
            "--guide-head-channels as it was trained"
        )
    by_count = said.guide_heads is not None
    heads, channels = (count, None) if by_count else (None, count)
    unet = replace(shape.unet, num_heads=heads, num_head_channels=channels)
    assumed = not by_count and said.guide_head_channels is None and name is None
    note = f"{path.name}: heads of {HEAD} channels are the reference's, which no weight confirms; --guide-heads otherwise"
    return replace(shape, unet=unet), ((note,) if assumed else ())


def _attends(tensors: Tensors, block: int) -> bool:
    return f"input_blocks.{block}.1.qkv.weight" in tensors


def _width(tensors: Tensors, block: int, path: Path) -> int:
    key = f"input_blocks.{block}.0.out_layers.3.weight"
    return tensors[key].shape[0] if key in tensors else _size(tensors, f"input_blocks.{block}.0.op.weight", 0, path)
