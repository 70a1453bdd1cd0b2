"""A picture of any size at the size that a model takes: cropped or padded to its proportions, then scaled.

Shrinking is by area: each pixel becomes the mean of exactly what it covers, counted by the share that lies in it. Enlarging
is Lanczos. Both work on the values in the file (not in linear light), as browsers do, and weigh colours by their alpha.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError, did_you_mean
from engine.result import U8

FITS = ("crop", "pad")
Size = tuple[int, int]  # width, height


def check_fit(fit: str) -> str:
    """The name of a way to fit; ArgumentError for none."""
    if fit not in FITS:
        raise ArgumentError(f"fit: found {fit!r}, expected one of {', '.join(FITS)}.{did_you_mean(fit, FITS)}")
    return fit


def fitted(picture: Any, size: Size, fit: str, background: tuple[int, int, int]) -> tuple[U8, str]:
    """A Pillow image of L, RGB or RGBA as uint8 [H, W, C] of this size, and what was done to it in words.

    "crop" keeps the largest part around the centre that has the proportions; "pad" keeps all, with `background` around it.
    """
    from PIL import Image

    found, words = picture.size, []
    if fit == "pad":
        inner = _inside(found, size)
        sheet = Image.new("RGB", size, background).convert(picture.mode)
        sheet.paste(_scaled(picture, inner), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
        words += [f"resized to {inner[0]}x{inner[1]}"] * (inner != found)
        words += [f"padded to {size[0]}x{size[1]}"] * (inner != size)
        picture = sheet
    else:
        box = _crop(found, size)
        kept = (box[2] - box[0], box[3] - box[1])
        picture = _scaled(picture if kept == found else picture.crop(box), size)
        words += [f"cropped to {kept[0]}x{kept[1]}"] * (kept != found)
        words += [f"resized to {size[0]}x{size[1]}"] * (kept != size)
    array = np.asarray(picture, np.uint8)
    planes = array[:, :, None] if array.ndim == 2 else array  # Pillow leaves a single channel out
    return planes, f"{found[0]}x{found[1]} {' and '.join(words)}" if words else ""


def _crop(found: Size, wanted: Size) -> tuple[int, int, int, int]:
    """The largest box of the wanted proportions around the centre: left, top, right, bottom.

    In whole pixels: a box between them would blur what it keeps.
    """
    scale = min(found[0] / wanted[0], found[1] / wanted[1])
    width, height = (max(1, min(size, round(scale * part))) for size, part in zip(found, wanted, strict=True))
    left, top = (found[0] - width) // 2, (found[1] - height) // 2
    return left, top, left + width, top + height


def _inside(found: Size, wanted: Size) -> Size:
    """The largest size of the found proportions within the wanted one."""
    scale = min(wanted[0] / found[0], wanted[1] / found[1])
    width, height = (max(1, min(limit, round(scale * part))) for limit, part in zip(wanted, found, strict=True))
    return width, height


def _scaled(picture: Any, size: Size) -> Any:
    """The whole picture at another size."""
    from PIL import Image

    shrunk = (min(size[0], picture.size[0]), min(size[1], picture.size[1]))
    if shrunk != picture.size:
        mode = picture.mode
        weighed = picture.convert("RGBa") if mode == "RGBA" else picture
        means: npt.NDArray[Any] = np.asarray(weighed)
        for axis in np.argsort(means.shape[:2])[::-1]:  # the longer side first: what is between is small then
            means = _means(means.swapaxes(0, axis), shrunk[1 - axis]).swapaxes(0, axis)
        small = Image.frombytes(weighed.mode, shrunk, np.rint(means).astype(np.uint8).tobytes())
        picture = small.convert(mode)
    return picture if shrunk == size else picture.resize(size, Image.Resampling.LANCZOS)


def _means(array: npt.NDArray[Any], count: int) -> npt.NDArray[np.float64]:
    """`count` means of equal stretches along the first axis; what a stretch covers in part counts by that part."""
    means = np.empty((count, *array.shape[1:]))
    for index in range(count):
        low, high = len(array) * index / count, len(array) * (index + 1) / count
        first, last = int(low), min(int(np.ceil(high)), len(array))
        # All of the stretch, without the parts that belong to its neighbours: no array of floats as large as a picture.
        total = array[first:last].sum(0, dtype=np.float64) - (low - first) * array[first]
        means[index] = (total - (last - high) * array[last - 1]) / (high - low)
    return means
