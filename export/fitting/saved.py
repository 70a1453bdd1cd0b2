"""What was fitted to a network, in a file beside its checkpoint, for every bundle that is built of it: settings, starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from engine.bundle.fields import parse_json
from engine.bundle.training import Source
from engine.commands import command
from engine.errors import ArgumentError

MOST_BYTES = 1 << 20
PROGRAMS = {"settings": "fit-setting", "starts": "fit-refine"}
BESIDE_TAKE = ("bundle", "take", "dry_run", "backend", "precision", "threads")


def check_beside_take(context: click.Context) -> None:
    """Refuse options of the search beside --take, which does not search."""
    for option in context.command.params:
        if option.name not in BESIDE_TAKE and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            words = "found --take too, which does not search; expected one of the two: leave one out"
            raise ArgumentError(f"{option.opts[0]}: {words}")


def checkpoint_of(source: Source) -> str:
    """SHA-256 of the checkpoint that holds the step's network; a first stage may be in another."""
    return source.sha256


def save_fit(path: Path, kind: str, checkpoint: str, rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    """Write settings, as `as_defaults` makes them, or rows of starts, with the record of how they were found."""
    data = {"checkpoint": checkpoint, kind: list(rows), "record": dict(record)}
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def load_fit(path: Path, kind: str, checkpoint: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and record of a file of this checkpoint's. What a row may say the bundle checks when they are written."""
    fit, keys = command(PROGRAMS[kind], "BUNDLE", "--images", "FILE", "--save", str(path)), ("checkpoint", "record", kind)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ArgumentError(f"take: found that {path} cannot be read ({error.strerror}), expected --save's file") from error
    found = parse_json(data, str(path)) if len(data) <= MOST_BYTES else None
    if (
        not isinstance(found, dict)
        or sorted(found) != list(keys)
        or not isinstance(found[kind], list)
        or not isinstance(found["record"], dict)
    ):
        raise ArgumentError(f"take: found {path} without {', '.join(keys)}, expected --save's file; make it with: {fit}")
    if found["checkpoint"] != checkpoint:
        raise ArgumentError(
            f"take: found {kind} of the checkpoint {str(found['checkpoint'])[:12]}…, expected those of this bundle's, "
            f"{checkpoint[:12]}…; fit them again with: {fit}"
        )
    return found[kind], found["record"]
