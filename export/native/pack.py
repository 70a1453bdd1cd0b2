"""The packing of weights into what the native engine reads in place: layouts of kernels/native/README.md.

A packed K step is one AMX tile: 16 rows of 16 outputs, each with the 2 (bf16) or 4 (int8) channels that one lane of a dot
product takes. Other instruction sets read the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # channels of a map's block, and of a bf16 K step; an int8 K step takes two blocks
OUTPUTS = 16  # outputs of a tile

F32 = NDArray[np.float32]

# [phase, tap, row]: the rows (or columns) of a 3 x 3 that fall on each tap of the 2 x 2 that a phase of a doubled map sees.
_FOLD = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float64)
# The same of a map with zeros between its rows and columns: the gradient of a convolution of stride 2.
_FOLD_STUFFED = np.array([[[0, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]], np.float64)


def pad_to(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def bf16(values: F32) -> NDArray[np.uint16]:
    """float32 rounded to bf16, to nearest even, as its 16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def pack_bf16(weight: F32, sources: Sequence[int], outputs: int) -> NDArray[np.uint16]:
    """[out, channels, taps] over sources of so many channels each -> [n-block, block, tap, 16 pairs, 16 outputs, 2]."""
    dense = _blocked(weight, sources, outputs, BLOCK)
    taps = weight.shape[2]
    split = dense.reshape(outputs // OUTPUTS, OUTPUTS, -1, BLOCK // 2, 2, taps)
    return bf16(np.ascontiguousarray(split.transpose(0, 2, 5, 3, 1, 4)))


def pack_int8(weight: NDArray[np.int8], sources: Sequence[int], outputs: int) -> NDArray[np.int8]:
    """The same of int8 -> [n-block, pair of blocks, tap, 16 quads, 16 outputs, 4]."""
    dense = _blocked(weight, sources, outputs, 2 * BLOCK)
    taps = weight.shape[2]
    split = dense.reshape(outputs // OUTPUTS, OUTPUTS, -1, BLOCK // 2, 4, taps)
    return np.ascontiguousarray(split.transpose(0, 2, 5, 3, 1, 4))


def _blocked(weight: NDArray[np.generic], sources: Sequence[int], outputs: int, multiple: int) -> NDArray[np.generic]:
    """The weight with every source padded to whole blocks, all of them to `multiple`, and outputs to `outputs`."""
    widths = [pad_to(channels, BLOCK) for channels in sources]
    dense = np.zeros((outputs, pad_to(sum(widths), multiple), weight.shape[2]), weight.dtype)
    read = write = 0
    for channels, width in zip(sources, widths, strict=True):
        dense[: len(weight), write : write + channels] = weight[:, read : read + channels]
        read, write = read + channels, write + width
    return dense


def fold_doubling(weight: F32, stuffed: bool = False) -> list[F32]:
    """A 3 x 3 weight behind nearest doubling as four 2 x 2: phase 2 py + px -> [out, channels, 4 taps]; `stuffed`: behind
    doubling by zeros, each value at the even rows and columns."""
    fold = _FOLD_STUFFED if stuffed else _FOLD
    folded = np.einsum("pdk,qel,ockl->pqocde", fold, fold, weight.astype(np.float64)).astype(np.float32)
    return [folded[py, px].reshape(*weight.shape[:2], 4) for py in (0, 1) for px in (0, 1)]


def pack_linear(weight: F32) -> F32:
    """[out, in] -> float32 [blocks of 16 outputs, in, 16]."""
    outputs, inputs = weight.shape
    dense = np.zeros((pad_to(outputs, OUTPUTS), inputs), np.float32)
    dense[:outputs] = weight
    return np.ascontiguousarray(dense.reshape(-1, OUTPUTS, inputs).transpose(0, 2, 1))


def padded(vector: F32, count: int) -> F32:
    """A vector with zeros up to `count`."""
    return np.concatenate([vector.astype(np.float32), np.zeros(count - len(vector), np.float32)])
