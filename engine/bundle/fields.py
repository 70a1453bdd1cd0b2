"""Untrusted JSON to checked values: strict parsing, and a reader that names the field in every refusal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from engine.bundle.limits import MAX_DIGITS, MAX_TEXT
from engine.commands import command
from engine.errors import BundleError, did_you_mean

REBUILD = f"rebuild the bundle with: {command('build', 'CKPT', '--out', 'PATH')}"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_json(data: bytes, where: str) -> Any:
    """Parse UTF-8 JSON; BundleError for duplicate keys, NaN and infinity, deep nesting and anything not JSON."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short_integer,
        )
    except RecursionError as error:
        raise BundleError(f"{where}: found JSON nested too deeply, expected a manifest; {REBUILD}") from error
    except ValueError as error:
        raise BundleError(f"{where}: found {error}, expected a manifest in JSON; {REBUILD}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shorten(key)} twice in one object")
        found[key] = value
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:MAX_DIGITS]}, too large for float64")
    return value


def _short_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def shorten(value: object) -> str:
    """repr(value), cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse(where: str, field: str, found: object, expected: str) -> NoReturn:
    """Raise the BundleError for a field that holds the wrong value."""
    kind = {dict: "object", list: "list", type(None): "null"}.get(type(found), type(found).__name__)
    what = "null" if found is None else f"{shorten(found)} ({kind})"
    raise BundleError(f"{where}, {field}: found {what}, expected {expected}; {REBUILD}")


def _hint(word: str, choices: Iterable[str]) -> str:
    hint = did_you_mean(word[:80], choices).strip()
    return f" ({hint[0].lower()}{hint[1:]})" if hint else ""


class Fields:
    """The fields of one JSON object: each is taken once, checked, and what is left over is refused.

    where: the file, for messages.  field: the dotted name of this object inside it ("" for the top).
    """

    def __init__(self, value: object, where: str, field: str) -> None:
        self.where = where
        self.field = field
        self._taken: set[str] = set()
        if not isinstance(value, dict):
            refuse(where, field or "top level", value, "an object")
        self._raw: dict[str, Any] = value

    def name_of(self, key: str) -> str:
        """The dotted name of a field of this object; a key that would garble a terminal is quoted."""
        shown = key if key.isprintable() and len(key) <= 60 else shorten(key)
        return f"{self.field}.{shown}" if self.field else shown

    def __iter__(self) -> Iterator[str]:
        """The keys that are there, for objects with free keys."""
        return iter(self._raw)

    def take(self, key: str, expected: str) -> Any:
        """The raw value of a field that must be there."""
        self._taken.add(key)
        if key not in self._raw:
            raise BundleError(f"{self.where}, {self.name_of(key)}: missing, expected {expected}; {REBUILD}")
        return self._raw[key]

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Refuse the value that this field holds."""
        refuse(self.where, self.name_of(key), self._raw[key], expected)

    def is_null(self, key: str) -> bool:
        """Whether the field is there and null."""
        return key in self._raw and self._raw[key] is None

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in low..high."""
        expected = f"an integer in {low}..{high}"
        value = self.take(key, expected)
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, expected)
        return int(value)

    def number(self, key: str, low: float, high: float) -> float:
        """A number in low..high."""
        expected = f"a number in {low:g}..{high:g}"
        value = self.take(key, expected)
        if type(value) not in (int, float) or not low <= value <= high:
            self.refuse(key, expected)
        return float(value)

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.take(key, "true or false")
        if type(value) is not bool:
            self.refuse(key, "true or false")
        return bool(value)

    def text(self, key: str, expected: str = f"a text of 1..{MAX_TEXT} printable characters") -> str:
        """A short printable text."""
        value = self.take(key, expected)
        if type(value) is not str or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
            self.refuse(key, expected)
        return str(value)

    def matching(self, key: str, pattern: re.Pattern[str], expected: str) -> str:
        """A text that matches the whole pattern."""
        value = self.take(key, expected)
        if type(value) is not str or not pattern.fullmatch(value):
            self.refuse(key, expected)
        return str(value)

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of a few words."""
        expected = "one of " + ", ".join(repr(choice) for choice in choices)
        value = self.take(key, expected)
        if type(value) is not str or value not in choices:
            self.refuse(key, expected + _hint(str(value), choices))
        return str(value)

    def free(self, key: str) -> dict[str, Any]:
        """An object that is not checked here."""
        value = self.take(key, "an object")
        if type(value) is not dict:
            self.refuse(key, "an object")
        return dict(value)

    def array(self, key: str, expected: str) -> list[Any]:
        """A list, which may be empty."""
        value = self.take(key, expected)
        if type(value) is not list:
            self.refuse(key, expected)
        return list(value)

    def items(self, key: str, expected: str) -> list[Any]:
        """A list that is not empty."""
        value = self.array(key, expected)
        if not value:
            self.refuse(key, expected)
        return value

    def objects(self, key: str, expected: str, *, empty: bool = False) -> list[Fields]:
        """A list of objects."""
        values = self.array(key, expected) if empty else self.items(key, expected)
        return [Fields(value, self.where, f"{self.name_of(key)}[{i}]") for i, value in enumerate(values)]

    def object(self, key: str) -> Fields:
        """A nested object."""
        return Fields(self.take(key, "an object"), self.where, self.name_of(key))

    def done(self, optional: Iterable[str] = ()) -> None:
        """Refuse the keys that were not taken: a misspelt field must not be ignored. optional: those that may be absent."""
        left = [key for key in self._raw if key not in self._taken]
        if left:
            known = self._taken.union(optional)
            raise BundleError(
                f"{self.where}, {self.name_of(left[0])}: found an unknown field, expected only "
                f"{', '.join(sorted(known))}{_hint(left[0], known)}; {REBUILD}"
            )
