"""The check that an ONNX file names no other file, whose bytes would be loaded without being verified.

The runtimes follow such names (inside the working directory, at best), so this looks before they do: a walk over the
protobuf messages that can hold a tensor, which reads lengths and skips contents. Only `tensor.external_data` is refused;
whether the rest is a sound graph is for the runtime to say.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.bundle.fields import REBUILD
from engine.errors import BundleError

# Message -> {field number: message}, from onnx.proto: every way from a model to a tensor.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {13: "external data"},
}
_EXTERNAL = "external data"
_MAX_DEPTH = 100  # messages inside messages; protobuf's own parsers stop there too


def check_self_contained(data: bytes, where: str) -> None:
    """BundleError when the ONNX file `data` names weights outside itself, or is not built like a protobuf message."""
    try:
        found = _holds_external_data(memoryview(data), "model", 0)
    except (IndexError, ValueError) as error:
        raise BundleError(f"{where}: found {error or 'a cut message'}, expected an ONNX file; {REBUILD}") from error
    if found:
        raise BundleError(
            f"{where}: found a tensor whose data lies in another file, expected every weight inside the graph file, "
            f"where its SHA-256 covers it; {REBUILD}"
        )


def _holds_external_data(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages nested deeper than {_MAX_DEPTH}")
    inside = _INSIDE[kind]
    for number, content in _fields(message):
        child = inside.get(number)
        if child == _EXTERNAL or (child is not None and _holds_external_data(content, child, depth + 1)):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of each length-delimited field; the other fields are skipped."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 2:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise ValueError("a message that is cut short")
            yield tag >> 3, message[at : at + length]
            at += length
        elif wire == 0:
            _, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
    if at > len(message):
        raise ValueError("a message that is cut short")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
