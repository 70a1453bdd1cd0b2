"""Options of a build that are said of a second file beside the checkpoint: a guide's, a regulariser's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from engine.errors import ArgumentError

Said = TypeVar("Said")


def split_off(kind: type[Said], options: Mapping[str, Any], expected: str) -> tuple[Said, dict[str, Any]]:
    """What was said in a dataclass of options, None being not said, and the options that are none of its.

    The first of its fields is the file. ArgumentError for the others without it; expected: what it is, for the message.
    """
    assert dataclasses.is_dataclass(kind)
    first, *others = names = [field.name for field in dataclasses.fields(kind)]
    said = kind(**{name: options[name] for name in names if name in options})
    if not getattr(said, first):
        given = next((name for name in others if getattr(said, name) is not None), None)
        if given is not None:
            flag = given.replace("_", "-")
            raise ArgumentError(f"--{flag}: found it without --{first}, expected {expected} beside it")
    return said, {name: value for name, value in options.items() if name not in names}
