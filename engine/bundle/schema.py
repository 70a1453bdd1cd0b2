"""The fields of a manifest, each stated once: as the annotation of the dataclass that it becomes a field of.

    steps: Annotated[int, Fields.integer, 1, "T"]

That is how a field is read: by a method of Fields, or a function of (fields, key), and what it is given besides. A text
stands for what the reader hands over under this name; `Annotated[...] | None` may be null. What has no annotation depends
on other fields and is read by hand. The C++ reader's embed/cpp/src/bundle/schema.h is written from the same annotations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from engine.bundle.fields import Fields

Spec = TypeVar("Spec")


class Entry(NamedTuple):
    """One field of an object: read(fields, key, *arguments), unless it is null."""

    key: str
    nullable: bool
    read: Callable[..., Any]
    arguments: tuple[Any, ...]


@cache
def entries(spec: type) -> tuple[Entry, ...]:
    """The annotated fields of a dataclass, in the order in which they are read."""
    hints, found = get_type_hints(spec, include_extras=True), []
    for field in dataclasses.fields(spec):
        hint = hints[field.name]
        for part in (hint, *get_args(hint)):
            if get_origin(part) is Annotated:
                found.append(Entry(field.name, part is not hint, part.__metadata__[0], part.__metadata__[1:]))
                break
    return tuple(found)


def take(spec: type, fields: Fields, **given: Any) -> dict[str, Any]:
    """{name: value} of the annotated fields; given: what their annotations name."""
    return {
        key: None
        if nullable and fields.take_null(key)
        else read(fields, key, *(given[value] if isinstance(value, str) else value for value in arguments))
        for key, nullable, read, arguments in entries(spec)
    }


def read(spec: type[Spec], fields: Fields, **given: Any) -> Spec:
    """An object all of whose fields are annotated, and which has no others."""
    found = spec(**take(spec, fields, **given))
    fields.done()
    return found


def nested(fields: Fields, key: str, spec: type[Spec]) -> Spec:
    """An object inside another, all of whose fields are annotated."""
    return read(spec, fields.object(key))
