"""What travels through a build: exported graphs, and a listener that is told how far it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from engine.bundle.graphs import graph_key
from engine.bundle.onnx_file import Onnx, Weights
from export.families.base import Recognised
from export.graphs.roles import Role, weights_file


@dataclass(frozen=True)
class Graph:
    """One exported graph: its ONNX file, the weights that do not fit into it, and the largest error of each runtime."""

    role: Role
    model: bytes
    parity: dict[str, float]
    weights: Weights = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its key in the manifest."""
        return graph_key(self.role.name, self.role.precision)

    @property
    def file(self) -> str:
        """Its file in the bundle."""
        return f"{self.key}.onnx"

    @property
    def files(self) -> dict[str, bytes | Iterator[bytes | memoryview]]:
        """What the bundle holds of it, by name."""
        found: dict[str, bytes | Iterator[bytes | memoryview]] = {self.file: self.model}
        return found | ({weights_file(self.role): Onnx(self.model, self.weights).pieces()} if self.weights else {})

    @property
    def nbytes(self) -> int:
        """The size of these files."""
        return len(self.model) + sum(array.nbytes for array in self.weights.values())

    @cached_property
    def sha256(self) -> str:
        """What an engine built from it names as its source."""
        return hashlib.sha256(self.model).hexdigest()


class Watch:
    """Hears of the progress of a build; this one says nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around each stage."""
        yield

    def progress(self, phase: str, done: int, total: int) -> None:
        """Called during a long stage: `done` of `total` pieces of `phase`."""

    def note(self, text: str) -> None:
        """One sentence about a stage, such as why nothing had to be done."""

    def inferred(self, found: Recognised) -> None:
        """Called once the model is known, before the long stages."""
