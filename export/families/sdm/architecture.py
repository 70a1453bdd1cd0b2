"""What is said of a semantic diffusion model beside what guided diffusion asks, and what its label map then is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ArgumentError, CheckpointError
from export.families.adm.architecture import Options as NetworkOptions
from export.models.openai.spec import OpenAIUNetSpec

GUIDANCE = 0.5  # the reference's s = 1.5
HOISTED = 64 * 64  # pixels of the largest maps whose gamma and beta are made before the loop


@dataclass(frozen=True)
class Options(NetworkOptions):
    """What a user may say of a checkpoint: guided diffusion's options, and

    instance_edges               whether the label map has a last channel of the edges between instances
    channel_mean, channel_std    of each channel, what x0 can be brought to in every step; both or neither
    """

    instance_edges: bool | None = None
    channel_mean: tuple[float, ...] | None = None
    channel_std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Labels:
    """The label map: how many labels there are, whether edges of instances lie behind them, and the mean and deviation of
    each channel that x0 can be brought to."""

    classes: int
    edges: bool
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def labels_of(shape: OpenAIUNetSpec, path: Path, said: Options) -> Labels:
    """The label map of a network that takes so many channels of it; CheckpointError where it must be said."""
    channels = shape.map_channels
    assert channels is not None, "claims sees to that"
    if said.instance_edges is None:
        raise CheckpointError(
            f"{path}: found a network whose label map has {channels} channels, which do not tell whether the last is of "
            f"instance edges; expected to be told: give --no-instance-edges for {channels} labels, or --instance-edges for "
            f"{channels - 1} and their edges"
        )
    if channels <= said.instance_edges:
        raise CheckpointError(f"{path}: found a label map of {channels} channel, expected one more beside --instance-edges")
    return Labels(channels - said.instance_edges, said.instance_edges, _moments(shape, said))


def _moments(shape: OpenAIUNetSpec, said: Options) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if said.channel_mean is None and said.channel_std is None:
        return None
    for flag, values in (("--channel-mean", said.channel_mean), ("--channel-std", said.channel_std)):
        least = 0.0 if flag.endswith("std") else -math.inf
        if values is None or len(values) != shape.channels or not all(math.isfinite(v) and v >= least for v in values):
            found = "none" if values is None else " ".join(f"{value:g}" for value in values)
            raise ArgumentError(
                f"{flag}: found {found}, expected {shape.channels} numbers, one a channel of images in [-1, 1], beside the "
                "other of --channel-mean and --channel-std"
            )
    assert said.channel_mean and said.channel_std, "refused above"  # noqa: PT018
    return tuple(map(float, said.channel_mean)), tuple(map(float, said.channel_std))
