"""Untrusted JSON to checked values: strict parsing, and a reader that names the field in every refusal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from engine.bundle.limits import MAX_DIGITS, MAX_TEXT
from engine.commands import command
from engine.errors import BundleError, did_you_mean

REBUILD = f"rebuild the bundle with: {command('build', 'CKPT', '--out', 'PATH')}"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")
HEXADECIMAL = "a SHA-256 of 64 lower-case hexadecimal digits"


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


def is_text(value: object) -> bool:
    """Whether a value is a text of 1..MAX_TEXT printable characters."""
    return type(value) is str and 1 <= len(value) <= MAX_TEXT and value.isprintable()


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

    def take_null(self, key: str) -> bool:
        """Whether a field that may be null is so, which takes it."""
        null = key in self._raw and self._raw[key] is None
        self._taken.update([key] if null else [])
        return null

    def checked(self, key: str, expected: str, fits: Callable[[Any], Any]) -> Any:
        """The raw value of a field that must be there and fit."""
        value = self.take(key, expected)
        if not fits(value):
            self.refuse(key, expected)
        return value

    def integer(self, key: str, low: int, high: int, also: str = "") -> int:
        """An integer in low..high. also: what else there might be, for messages."""
        expected = f"an integer in {low}..{high}{also}"
        return int(self.checked(key, expected, lambda value: type(value) is int and low <= value <= high))

    def integer_or_null(self, key: str, low: int, high: int) -> int:
        """An integer in low..high where null would do as well."""
        return self.integer(key, low, high, ", or null")

    def number(self, key: str, low: float, high: float) -> float:
        """A number in low..high."""
        expected = f"a number in {low:g}..{high:g}"
        return float(self.checked(key, expected, lambda value: type(value) in (int, float) and low <= value <= high))

    def numbers(self, key: str, low: float, high: float) -> float | tuple[float, ...]:
        """A number in low..high, or a list of some, one a step."""

        def fits(value: Any) -> bool:
            return type(value) in (int, float) and bool(low <= value <= high)

        expected = f"a number in {low:g}..{high:g}, or a list of them, one a step"
        listed = lambda value: type(value) is list and value and all(map(fits, value))  # noqa: E731
        found = self.checked(key, expected, lambda value: fits(value) or listed(value))
        return tuple(map(float, found)) if type(found) is list else float(found)

    def series(self, key: str, low: float, high: float, count: int) -> tuple[float, ...]:
        """So many numbers in low..high."""

        def fits(value: Any) -> bool:
            return type(value) is list and all(type(one) in (int, float) and low <= one <= high for one in value)

        expected = f"a list of {count} numbers in {low:g}..{high:g}"
        return tuple(map(float, self.checked(key, expected, lambda value: fits(value) and len(value) == count)))

    def falling(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list of integers in low..high that fall, where null would do as well."""

        def fits(value: Any) -> bool:
            inside = type(value) is list and all(type(one) is int and low <= one <= high for one in value)
            return inside and bool(value) and all(a > b for a, b in pairwise(value))

        return tuple(self.checked(key, f"a falling list of integers in {low}..{high}, or null", fits))

    def boolean(self, key: str) -> bool:
        """True or false."""
        return bool(self.checked(key, "true or false", lambda value: type(value) is bool))

    def text(self, key: str, expected: str = f"a text of 1..{MAX_TEXT} printable characters") -> str:
        """A short printable text."""
        return str(self.checked(key, expected, is_text))

    def label(self, key: str) -> str:
        """A text of the same letters as a file name."""
        return self._matching(key, FILE_NAME, "a label of letters, digits, '.', '_' and '-'")

    def file_name(self, key: str) -> str:
        """The name of a file inside the bundle."""
        return self._matching(key, FILE_NAME, "a plain file name inside the bundle (letters, digits, '.', '_', '-')")

    def sha256(self, key: str) -> str:
        """A SHA-256 in hexadecimal."""
        return self._matching(key, SHA256, HEXADECIMAL)

    def _matching(self, key: str, pattern: re.Pattern[str], expected: str) -> str:
        return str(self.checked(key, expected, lambda value: type(value) is str and pattern.fullmatch(value)))

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """One of a few words."""
        expected = "one of " + ", ".join(repr(choice) for choice in choices)
        value = self.take(key, expected)
        if type(value) is not str or value not in choices:
            self.refuse(key, expected + _hint(str(value), choices))
        return str(value)

    def free(self, key: str) -> dict[str, Any]:
        """An object that is not checked here."""
        return dict(self.checked(key, "an object", lambda value: type(value) is dict))

    def array(self, key: str, expected: str) -> list[Any]:
        """A list, which may be empty."""
        return list(self.checked(key, expected, lambda value: type(value) is list))

    def items(self, key: str, expected: str) -> list[Any]:
        """A list that is not empty."""
        return list(self.checked(key, expected, lambda value: type(value) is list and value))

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
