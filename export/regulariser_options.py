"""What is said of a regulariser, whatever the model's family: a second model's file, and where it comes in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ArgumentError


@dataclass(frozen=True)
class RegulariserOptions:
    """What a user may say of a regulariser; None is not said.

    regulariser          the unconditional model's file
    regularise           where it comes in, that the bundle records: a mode of engine.solver.regulariser
    regularise_interval  (low, high), likewise
    regulariser_options  what its own weights cannot tell: options of its family, by name
    """

    regulariser: Path | None = None
    regularise: str | None = None
    regularise_interval: tuple[int, int] | None = None
    regulariser_options: Mapping[str, Any] | None = None


NAMES = tuple(field.name for field in dataclasses.fields(RegulariserOptions))


def split(options: Mapping[str, Any]) -> tuple[RegulariserOptions, dict[str, Any]]:
    """What was said of the regulariser, and the rest; ArgumentError for options without one."""
    said = RegulariserOptions(**{name: options[name] for name in NAMES if name in options})
    if said.regulariser is None:
        given = next((name for name in NAMES[1:] if getattr(said, name) is not None), None)
        if given is not None:
            flag = given.replace("_", "-")
            expected = "an unconditional model's file beside it"
            raise ArgumentError(f"--{flag}: found it without --regulariser, expected {expected}")
    return said, {name: value for name, value in options.items() if name not in NAMES}
