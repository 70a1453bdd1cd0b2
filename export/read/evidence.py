"""Who can answer what the weights do not tell: the file's own metadata, a preset, a flag; and what if they disagree?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import ArgumentError, CheckpointError
from export.families.presets import Preset, preset
from export.read.parts import Network, Stage

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the user said about the model; None where they said nothing. `schedule` is (beta_1, beta_T, T)."""

    heads: int | None = None
    image_size: int | None = None
    formulation: int | None = None
    schedule: tuple[float, float, int] | None = None
    variance: str | None = None
    preset: str | None = None
    name: str | None = None
    vae_enc_blocks: str | None = None
    vae_dec_blocks: str | None = None


@dataclass(frozen=True)
class Evidence:
    """Where answers can come from, beside the weights themselves."""

    path: Path
    network: Network
    stage: Stage | None
    metadata: dict[str, Any]
    options: Options

    @property
    def preset(self) -> Preset | None:
        """The preset that the user named."""
        return preset(self.options.preset) if self.options.preset else None

    @property
    def preset_label(self) -> str:
        """How messages call it."""
        return f"preset {self.options.preset}"

    def plain(self, key: str, kind: type[T], expected: str) -> T | None:
        """A hyper-parameter of the file, of the type that it must have, or None."""
        value = self.metadata.get(key)
        if value is None or type(value) is kind:
            return value
        raise CheckpointError(
            f"{self.path}: found {value!r} as the hyper-parameter {key!r}, expected {expected}; write the checkpoint again "
            "with a proper value, or without it and with the flag"
        )


def settle(name: str, claims: Sequence[tuple[str, T | None]]) -> tuple[T, str] | None:
    """The value on which all (source, value) claims agree and its first source; None when nobody claims anything."""
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
