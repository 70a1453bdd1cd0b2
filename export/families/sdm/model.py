"""A checkpoint of a semantic diffusion model from its keys to a model with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import ArgumentError
from export.families.adm.architecture import infer
from export.families.adm.keys import LABEL_MAP, own_keys
from export.families.adm.model import Declared, name_of, read_network, source_of
from export.families.adm.model import Found as FoundNetwork
from export.families.base import options_of
from export.families.sdm.architecture import GUIDANCE, Labels, Options, labels_of
from export.families.sdm.graphs import roles
from export.families.sdm.pipeline import inputs, pipeline
from export.read.checkpoint import Checkpoint

NAME = "sdm"


def claims(checkpoint: Checkpoint) -> bool:
    """Whether the keys are those of a UNet whose norms a label map scales and shifts."""
    return LABEL_MAP in own_keys(checkpoint.tensors)


def recognise(checkpoint: Checkpoint, other: Path | None, weights: str, options: Mapping[str, Any]) -> Found:
    """The model in a checkpoint, by its shapes and by what was said of it."""
    said = options_of(Options, options, NAME)
    if other is not None:
        raise ArgumentError(f"--vae: found {other}, expected none: a semantic diffusion model has no VAE")
    if said.preset is not None:
        raise ArgumentError(
            f"--preset: found {said.preset!r}, expected none: no semantic diffusion model is known by name; give --heads or "
            "--head-channels, --image-size and --noise-schedule"
        )
    path = checkpoint.path
    shape, tensors = read_network(checkpoint)
    of, labels = infer(shape, path, said), labels_of(shape, path, said)
    of = replace(of, defaults={**of.defaults, "guidance": GUIDANCE})
    return Found(source_of(checkpoint, weights), name_of(path, said.name), of, tensors, None, labels)


@dataclass(frozen=True)
class Found(FoundNetwork):
    """A semantic diffusion model whose architecture is settled. A `Recognised`."""

    labels: Labels

    def declared(self) -> Declared:
        """What its bundle declares."""
        of, labels = self.architecture, self.labels
        graphs = roles(of, labels, self.network())
        return Declared(NAME, graphs, inputs(of, labels), pipeline(of, labels, graphs))

    def lines(self) -> dict[str, str]:
        """What was inferred, each line with where it came from."""
        edges = " and the edges of instances" if self.labels.edges else ""
        lines = {"label map": f"{self.labels.classes} labels{edges}  [weights; --instance-edges]"}
        if self.labels.moments is not None:
            text = "; ".join(" ".join(f"{value:g}" for value in values) for values in self.labels.moments)
            lines["x0 on request"] = f"channels of mean and deviation {text}  [--channel-mean, --channel-std]"
        return super().lines() | lines
