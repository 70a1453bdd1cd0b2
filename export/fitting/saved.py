"""Fitted settings in a file beside their checkpoint, for every bundle that is built of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.bundle.fields import parse_json
from engine.bundle.training import Source
from engine.commands import command
from engine.errors import ArgumentError

MOST_BYTES = 1 << 20
KEYS = ("checkpoint", "record", "settings")


def checkpoint_of(source: Source) -> str:
    """SHA-256 of the checkpoint that holds the step's network; a first stage may be in another."""
    return source.sha256


def save_settings(path: Path, checkpoint: str, settings: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    """Write settings, as `as_defaults` makes them, with the record of how they were found."""
    data = {"checkpoint": checkpoint, "settings": list(settings), "record": dict(record)}
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def load_settings(path: Path, checkpoint: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Settings and record of a file of this checkpoint's. What a setting may say the bundle checks when they are written."""
    fit = command("fit-setting", "BUNDLE", "--images", "FILE", "--save", str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ArgumentError(f"take: found that {path} cannot be read ({error.strerror}), expected --save's file") from error
    found = parse_json(data, str(path)) if len(data) <= MOST_BYTES else None
    if (
        not isinstance(found, dict)
        or sorted(found) != list(KEYS)
        or not isinstance(found["settings"], list)
        or not isinstance(found["record"], dict)
    ):
        raise ArgumentError(f"take: found {path} without {', '.join(KEYS)}, expected --save's file; make it with: {fit}")
    if found["checkpoint"] != checkpoint:
        raise ArgumentError(
            f"take: found settings of the checkpoint {str(found['checkpoint'])[:12]}…, expected those of this bundle's, "
            f"{checkpoint[:12]}…; fit them again with: {fit}"
        )
    return found["settings"], found["record"]
