"""What is said of a regulariser, whatever the model's family: a second model's file, and where it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.beside import split_off


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


def split(options: Mapping[str, Any]) -> tuple[RegulariserOptions, dict[str, Any]]:
    """What was said of the regulariser, and the rest; ArgumentError for options without one."""
    return split_off(RegulariserOptions, options, "an unconditional model's file")
