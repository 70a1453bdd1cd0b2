"""ONNX files whose weights are all verified: inside, or in the one file of weights that the manifest names beside it.

The runtimes follow the names of other files (inside the working directory, at best), so this looks before they do: a walk
over the protobuf messages that can hold a tensor, which reads lengths and skips contents. Only `tensor.external_data` is
refused; whether the rest is a sound graph is for the runtime to say. No runtime opens a file of weights: it is handed the
arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

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
# Numbers of onnx.proto's fields, as far as a weight outside needs them.
_GRAPH, _INITIALIZER, _INPUT = 7, 5, 11
_DIMS, _DTYPE, _NAME, _DATA, _LOCATION = 1, 2, 8, 13, 14
_WEIGHT_DTYPES: dict[int, Any] = {1: np.dtype(np.float32), 10: np.dtype(np.float16)}
_MAX_DEPTH = 100  # messages inside messages; protobuf's own parsers stop there too


Weights = Mapping[str, npt.NDArray[np.generic]]
PAGE = 4096  # where each weight begins in its file, as ONNX recommends, so that it can be mapped by itself


@dataclass(frozen=True)
class Onnx:
    """An ONNX model: the bytes of its file, and by initializer the weights that lie outside, in the order of their file."""

    data: bytes
    weights: Weights = field(default_factory=dict)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The file of weights: each from the start of a page on."""
        for array in self.weights.values():
            yield array.reshape(-1).view(np.uint8).data
            yield bytes(-array.nbytes % PAGE)


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
    for number, content, _ in _fields(message):
        child = inside.get(number)
        if child is None or isinstance(content, int):
            continue
        if child == _EXTERNAL or _holds_external_data(content, child, depth + 1):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int, memoryview]]:
    """(number, content, the field as it is) of each field: a message, text or bytes, a number, or fixed bytes as 0."""
    at = 0
    while at < len(message):
        begin, content = at, memoryview(b"")
        tag, at = _varint(message, at)
        wire, value = tag & 7, 0
        if wire == 2:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise ValueError("a message that is cut short")
            content = message[at : at + length]
            at += length
        elif wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > len(message):
                raise ValueError("a message that is cut short")
        else:
            raise ValueError(f"a field of wire type {wire}")
        yield tag >> 3, content if wire == 2 else value, message[begin:at]


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


# --- Weights outside --------------------------------------------------------------------------------------------------


def with_weights(data: bytes, where: str, file: str, mapped: memoryview) -> Onnx:
    """The ONNX file `data` and its weights in `mapped`, the verified bytes of the file of weights beside it.

    BundleError when a tensor lies elsewhere, beyond the end or is none of the graph's own initializers.
    """
    try:
        weights = {}
        for content in _initializers(memoryview(data)):
            name, array = _weight(content, file, mapped)
            if array is not None:
                weights[name] = array
        check_self_contained(as_inputs(data), where)
    except (IndexError, ValueError) as error:
        raise BundleError(
            f"{where}: found {error or 'a cut message'}, expected an ONNX file with its large weights in {file}; {REBUILD}"
        ) from error
    return Onnx(data, weights)


def as_inputs(data: bytes) -> bytes:
    """The same ONNX file with inputs of the graph in the place of the initializers that lie outside."""
    model = bytearray()
    for number, content, field_ in _fields(memoryview(data)):
        if number != _GRAPH or not isinstance(content, memoryview):
            model += field_
            continue
        graph = bytearray()
        for inner, tensor, whole in _fields(content):
            if inner == _INITIALIZER and isinstance(tensor, memoryview) and _is_outside(tensor):
                graph += _message(_INPUT, _value_info(tensor))
            else:
                graph += whole
        model += _message(_GRAPH, bytes(graph))
    return bytes(model)


def _initializers(model: memoryview) -> Iterator[memoryview]:
    for number, graph, _ in _fields(model):
        if number == _GRAPH and isinstance(graph, memoryview):
            for inner, tensor, _ in _fields(graph):
                if inner == _INITIALIZER and isinstance(tensor, memoryview):
                    yield tensor


def _is_outside(tensor: memoryview) -> bool:
    return any(number == _DATA for number, _, _ in _fields(tensor))


def _tensor(tensor: memoryview) -> tuple[str, int, list[int]]:
    """Name, type and shape."""
    name, dtype, dims = "", 0, []
    for number, content, _ in _fields(tensor):
        if number == _DIMS:
            dims += [content] if isinstance(content, int) else _packed(content)
        elif number == _DTYPE and isinstance(content, int):
            dtype = content
        elif number == _NAME and isinstance(content, memoryview):
            name = bytes(content).decode()
    return name, dtype, dims


def _weight(tensor: memoryview, file: str, mapped: memoryview) -> tuple[str, npt.NDArray[np.generic] | None]:
    """Name and array of an initializer; None where its data is inside."""
    name, dtype, dims = _tensor(tensor)
    said = {}
    for number, content, _ in _fields(tensor):
        if number == _DATA and isinstance(content, memoryview):
            words = [bytes(text).decode() for _, text, _ in _fields(content) if isinstance(text, memoryview)]
            said[words[0]] = words[-1]
    if not said:
        return name, None
    if said.get("location") != file or dtype not in _WEIGHT_DTYPES:
        raise ValueError(f"{name!r} of type {dtype} in {said.get('location')!r}")
    kind: np.dtype[np.generic] = _WEIGHT_DTYPES[dtype]
    offset, count = int(said.get("offset", "0")), math.prod(dims)
    if min(offset, *dims, count) < 0 or offset + count * kind.itemsize > len(mapped):
        raise ValueError(f"{name!r} from {offset} on, beyond the end of {file}")
    return name, np.frombuffer(mapped, kind, count, offset).reshape(dims)


def _value_info(tensor: memoryview) -> bytes:
    """The tensor as an input: its name, type and shape."""
    name, dtype, dims = _tensor(tensor)
    shape = b"".join(_message(1, _number(1, size)) for size in dims)
    return _message(1, name.encode()) + _message(2, _message(1, _number(1, dtype) + _message(2, shape)))


def _packed(content: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(content):
        value, at = _varint(content, at)
        numbers.append(value)
    return numbers


def _message(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3) + _encoded(value)


def _encoded(value: int) -> bytes:
    """A varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
