"""A training configuration as YAML has it, read field by field: of the right kind, in limits, and none left unread.

Nothing in it is code: a `target` is a text that is compared with known ones, and no class is ever looked up by it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from engine.errors import CheckpointError, did_you_mean, first_line
from export.read.parts import listed

MAX_BYTES = 64 << 10  # of a configuration; published ones have 3 KiB
MAX_LIST = 64
MAX_DEPTH = 32
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # 1e-4, a text in YAML 1.1, is meant as a number
DAMAGED = (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Plain values only: no tags, no aliases, which can stand for far more than the file, no key twice, and no depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"the alias *{event.anchor}: write out what it stands for")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {str(twice)[:80]!r} twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; CheckpointError for one that is too large, no YAML or no mapping."""
    return _mapping(path, "YAML", lambda data: yaml.load(data, _Loader))  # a SafeLoader


def read_json(path: Path) -> Mapping[str, Any]:
    """The mapping in a JSON file; CheckpointError as for YAML."""
    return _mapping(path, "JSON", json.loads)


def _mapping(path: Path, kind: str, parse: Callable[[bytes], Any]) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path}: found no configuration to read ({error.strerror}), expected a {kind} file; check the path"
        ) from error
    if len(data) > MAX_BYTES:
        raise CheckpointError(
            f"{path}: found more than {MAX_BYTES} bytes, expected the {kind} of a model, which has a few thousand; check "
            "that this is the right file"
        )
    try:
        content = parse(data)
    except DAMAGED as error:
        raise CheckpointError(
            f"{path}: found no {kind} of plain values ({first_line(error)}), expected the configuration beside the "
            "weights; correct it, or copy it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: found {type(content).__name__} instead of fields, expected a mapping in {kind}; give the "
            "configuration that the model was trained with"
        )
    return content


class Section:
    """The fields of one part of a configuration; each is taken once, and `done` refuses what is left."""

    def __init__(self, path: Path, name: str, content: Any) -> None:
        """name: where the part is, such as "model.params"; CheckpointError where it is no mapping."""
        self.path, self.name = path, name
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path}: found {name} = {content!r:.80}, expected fields; give the model's own configuration"
            )
        self._left: dict[Any, Any] = dict(content)
        self._taken: list[str] = []

    def has(self, key: str) -> bool:
        """Whether a field is there and not null."""
        return self._left.get(key) is not None

    def knows(self, key: str) -> bool:
        """Whether a field is there, even as null."""
        return key in self._left

    def is_list(self, key: str) -> bool:
        """Whether a field is a list."""
        return isinstance(self._left.get(key), list)

    def drop(self, useless: Callable[[str, Any], bool]) -> None:
        """Pass over the fields for which `useless(key, value)` is true."""
        self._left = {key: value for key, value in self._left.items() if not useless(str(key), value)}

    def raw(self, key: str) -> Any:
        """A field as it is; None where there is none."""
        self._taken.append(key)
        return self._left.pop(key, None)

    def part(self, key: str) -> Section:
        """The fields of a part of this part."""
        return Section(self.path, f"{self.name}.{key}", self.raw(key))

    def refuse(self, key: str, value: Any, expected: str, cure: str = "correct the configuration") -> CheckpointError:
        """The error for a field of this value."""
        return CheckpointError(f"{self.path}: found {self.name}.{key} = {value!r:.80}, expected {expected}; {cure}")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer from low to high."""
        value = self.raw(key)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, value, f"an integer of {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float) -> float:
        """A number from low to high."""
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.refuse(key, value, f"a number of {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(key)
        value = default if value is None else value
        if type(value) is not bool:
            raise self.refuse(key, value, "true or false")
        return value

    def choice(self, key: str, choices: Collection[str], default: str | None = None) -> str:
        """One of some words."""
        value = self.raw(key)
        value = default if value is None else value
        if type(value) is not str or value not in choices:
            raise self.refuse(key, value, f"one of {', '.join(choices)}.{did_you_mean(str(value)[:80], choices)}")
        return value

    def integers(self, key: str, low: int, high: int, least: int = 0, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A list of integers from low to high, at least so many."""
        value = self.raw(key)
        value = list(default) if value is None and default else value
        found = value if isinstance(value, list) and least <= len(value) <= MAX_LIST else [None]
        if not all(type(item) is int and low <= item <= high for item in found):
            raise self.refuse(key, value, f"a list of {least} to {MAX_LIST} integers of {low} to {high}")
        return tuple(found)

    def only(self, key: str, *values: Any) -> None:
        """Refuse a field that is not null and has another value than these, of which one is what its absence means."""
        value = self.raw(key)
        if value is not None and not any(type(value) is type(known) and value == known for known in values):
            expected = " or ".join(repr(known) for known in values if known is not None) or "null"
            raise self.refuse(key, value, expected, "a model of another kind is not supported")

    def ignore(self, keys: Collection[str]) -> None:
        """Pass over fields that matter for training only."""
        for key in keys:
            self.raw(key)

    def done(self) -> None:
        """CheckpointError for fields that were not taken: they may change the network."""
        if self._left:
            names = [str(key)[:80] for key in self._left]
            raise CheckpointError(
                f"{self.path}: found {self.name}.{listed(names)}, which may change the network and which this reader does "
                f"not know, expected the fields of the CompVis configurations.{did_you_mean(names[0], self._taken)} If the "
                "weights do not depend on it, take it out of the file"
            )
