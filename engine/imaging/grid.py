"""Several images as one picture."""

from __future__ import annotations

import math

import numpy as np

from engine.errors import ArgumentError
from engine.result import U8

PAD = 2  # pixels around each picture


def grid(images: U8, *, columns: int | None = None, pad: int = PAD, background: int = 255) -> U8:
    """Lay uint8 [N, H, W, C] out as one picture, row by row; `columns` None makes it nearly square."""
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ArgumentError(f"A grid takes uint8 [N, H, W, C], N at least 1; found {images.dtype} {list(images.shape)}.")
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), background, np.uint8)
    for index, image in enumerate(images):
        top = pad + (index // columns) * (height + pad)
        left = pad + (index % columns) * (width + pad)
        sheet[top : top + height, left : left + width] = image
    return sheet


def paired_rows(above: U8, below: U8, columns: int) -> U8:
    """Interleave two equal stacks: a grid of `columns` then shows each row of `above` over one of `below`.

    A last row that is not full is filled up with white in both.
    """
    missing = -len(above) % columns
    blank = np.full((missing, *above.shape[1:]), 255, np.uint8)
    pairs = (np.concatenate([stack, blank]).reshape(-1, 1, columns, *above.shape[1:]) for stack in (above, below))
    return np.concatenate(list(pairs), axis=1).reshape(-1, *above.shape[1:])
