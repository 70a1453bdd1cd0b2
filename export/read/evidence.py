"""Answers that weights do not give: what a file says of itself, and what happens when sources disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import ArgumentError, CheckpointError

T = TypeVar("T")
Claims = Sequence[tuple[str, T | None]]  # (source, what it says or None)


@dataclass(frozen=True)
class Facts:
    """The plain hyper-parameters that a checkpoint holds."""

    path: Path
    metadata: Mapping[str, Any]

    def plain(self, key: str, kind: type[T], expected: str) -> T | None:
        """A hyper-parameter of the type that it must have, or None."""
        value = self.metadata.get(key)
        if value is None or type(value) is kind:
            return value
        raise CheckpointError(
            f"{self.path}: found {value!r} as the hyper-parameter {key!r}, expected {expected}; write the checkpoint again "
            "with a proper value, or without it and with the flag"
        )


def settle(name: str, claims: Claims[T]) -> tuple[T, str] | None:
    """The value on which all claims agree and its first source; None where there is no claim."""
    made = [(source, value) for source, value in claims if value is not None]
    if not made:
        return None
    source, value = made[0]
    for other, claimed in made[1:]:
        if claimed != value:
            raise ArgumentError(
                f"{name}: found {value} from {source} but {claimed} from {other}, expected one answer; drop or correct one "
                "of the two"
            )
    return value, source


def first(claims: Claims[T]) -> tuple[T, str]:
    """The first value claimed and its source; there is one."""
    return next((value, source) for source, value in claims if value is not None)
