"""What travels through a build: exported graphs, and a listener that is told how far it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from engine.bundle.graphs import graph_key
from export.families.base import Recognised
from export.graphs.roles import Role


@dataclass(frozen=True)
class Graph:
    """One exported graph: its ONNX bytes and the largest relative error of each runtime."""

    role: Role
    model: bytes
    parity: dict[str, float]

    @property
    def key(self) -> str:
        """Its key in the manifest."""
        return graph_key(self.role.name, self.role.precision)

    @property
    def file(self) -> str:
        """Its file in the bundle."""
        return f"{self.key}.onnx"

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
