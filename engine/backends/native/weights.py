"""Packed weights of the native engine: a safetensors file that is mapped, checked and never copied.

The format: eight bytes with the header's length, a JSON header {name: {dtype, shape, data_offsets}}, the data. Of what it
allows, only what packed weights need is taken: three dtypes, no gaps, every tensor and the data themselves at multiples of
64 bytes, so that the processor's tiles load from the mapping as it is. All handles over a file share one mapping.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.bundle.fields import REBUILD, Fields, parse_json
from engine.errors import BundleError

ALIGNMENT = 64
DTYPES = {"F32": 4, "BF16": 2, "I8": 1}  # bytes of an element
MAX_HEADER_BYTES = 16 * 2**20
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Blob:
    """One packed tensor: where it begins in the data, and its bytes."""

    dtype: str
    offset: int
    size: int


@dataclass(frozen=True)
class Weights:
    """A mapped file: its blobs by name, and the data as bytes, which live as long as they are held."""

    blobs: Mapping[str, Blob]
    data: NDArray[np.uint8]


def mapped_weights(mapped: mmap.mmap, where: str) -> Weights:
    """The weights of a mapping that is verified; BundleError names what is wrong with its header."""
    if len(mapped) < ALIGNMENT:
        raise BundleError(f"{where}: found {len(mapped)} bytes, expected packed weights in safetensors; {REBUILD}")
    return parse_weights(np.frombuffer(mapped, np.uint8), where)


def weights_of(data: bytes, where: str) -> Weights:
    """The same of bytes in memory, which are copied once to where tiles can be loaded from."""
    room = np.empty(len(data) + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    content = room[start : start + len(data)]
    content[:] = np.frombuffer(data, np.uint8)
    return parse_weights(content, where)


def parse_weights(content: NDArray[np.uint8], where: str) -> Weights:
    """Check a file's content, which begins at a multiple of 64 bytes."""
    start = _data_start(content, where)
    header = parse_json(content[_LENGTH_BYTES:start].tobytes(), where)
    return Weights(check_header(header, content.size - start, where), content[start:])


def _data_start(content: NDArray[np.uint8], where: str) -> int:
    length = int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    start = _LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or start > content.size or start % ALIGNMENT:
        raise BundleError(
            f"{where}: found a header of {length} bytes in a file of {content.size}, expected one that ends inside it at a "
            f"multiple of {ALIGNMENT}; {REBUILD}"
        )
    return start


def check_header(raw: object, size: int, where: str) -> dict[str, Blob]:
    """The blobs of a parsed header over `size` bytes of data; together they must fill it without a gap."""
    top = Fields(raw, where, "")
    blobs = {name: _blob(top.object(name)) for name in top}
    end = 0
    for name, blob in sorted(blobs.items(), key=lambda item: item[1].offset):
        if blob.offset != end or blob.offset % ALIGNMENT or blob.size % ALIGNMENT:
            top.refuse(name, f"a tensor of a multiple of {ALIGNMENT} bytes, from {end} on, where the last one ends")
        end += blob.size
    if end != size:
        raise BundleError(f"{where}: found {size} bytes of data, expected the {end} that the header names; {REBUILD}")
    return blobs


def _blob(fields: Fields) -> Blob:
    dtype = fields.choice("dtype", tuple(DTYPES))
    shape = fields.items("shape", "a list of dimensions")
    if not all(type(d) is int and 1 <= d <= 2**31 for d in shape):
        fields.refuse("shape", "positive integers")
    offsets = fields.items("data_offsets", "[begin, end]")
    if len(offsets) != 2 or not all(type(n) is int and 0 <= n < 2**62 for n in offsets):
        fields.refuse("data_offsets", "[begin, end] of two integers")
    size = math.prod(shape) * DTYPES[dtype]
    if offsets[1] - offsets[0] != size:
        fields.refuse("data_offsets", f"[begin, end], {size} bytes apart by dtype and shape")
    fields.done()
    return Blob(dtype, offsets[0], size)
