"""Protobuf messages as text: mappings are messages, lists are repeated fields, a Word is an enum's value.

Triton reads config.pbtxt with protobuf's own parser; writing it needs no protobuf installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Value: TypeAlias = "str | int | bool | Mapping[str, Value] | Sequence[Value]"

_ESCAPES = {ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


class Word(str):
    """An enum's value: written without quotes."""


def text_of(message: Mapping[str, Value]) -> str:
    """The message in protobuf's text format, one field a line."""
    return "".join(f"{line}\n" for line in _fields(message))


def entries(mapping: Mapping[str, Value]) -> list[Value]:
    """A map field: protobuf writes it as repeated messages of key and value."""
    return [{"key": key, "value": value} for key, value in mapping.items()]


def quoted(text: str) -> str:
    """A string literal: printable ASCII as it is, everything else as octal bytes of UTF-8."""
    return '"' + "".join(_character(byte) for byte in text.encode("utf-8")) + '"'


def _character(byte: int) -> str:
    return _ESCAPES.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}")


def _fields(message: Mapping[str, Value]) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, (str, int)):
            yield f"{name}: {_scalar(value)}"
        elif isinstance(value, Mapping):
            yield from _message(name, value)
        elif all(isinstance(one, Mapping) for one in value):
            for one in value:
                yield from _message(name, one)
        else:
            yield f"{name}: [{', '.join(map(_scalar, value))}]"


def _message(name: str, message: Any) -> Iterator[str]:
    yield f"{name} {{"
    yield from (f"  {line}" for line in _fields(message))
    yield "}"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(value) if isinstance(value, str) else str(value)
