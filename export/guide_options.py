"""What is said of a guide, whatever the model's family: a classifier's file, and what its weights cannot tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ArgumentError


@dataclass(frozen=True)
class GuideOptions:
    """What a user may say of a guide; None is not said.

    guide        the classifier's file, in a tuple
    guide_scale  that the bundle records
    guide_heads, guide_head_channels   one of the two
    guide_depth  residual blocks of a level
    """

    guide: tuple[Path, ...] | None = None
    guide_scale: float | None = None
    guide_heads: int | None = None
    guide_head_channels: int | None = None
    guide_depth: int | None = None


NAMES = tuple(field.name for field in dataclasses.fields(GuideOptions))


def split(options: Mapping[str, Any]) -> tuple[GuideOptions, dict[str, Any]]:
    """What was said of the guide, and the rest; ArgumentError for options without a guide, and for several files."""
    said = GuideOptions(**{name: options[name] for name in NAMES if name in options})
    if not said.guide:
        given = next((name for name in NAMES[1:] if getattr(said, name) is not None), None)
        if given is not None:
            flag = given.replace("_", "-")
            raise ArgumentError(f"--{flag}: found it without --guide, expected a classifier's file beside it")
    elif len(said.guide) > 1:
        raise ArgumentError(
            f"--guide: found {len(said.guide)} files, expected one; export.experts makes guides of several, from Python"
        )
    return said, {name: value for name, value in options.items() if name not in NAMES}
