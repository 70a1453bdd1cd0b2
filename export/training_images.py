"""Training images as fitting takes them: an .npz file, or a folder of pictures that are of the right size already."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError
from engine.imaging import Loaded, load_images

U8 = npt.NDArray[np.uint8]
KEY = "images"


def read_images(path: Path, shape: tuple[int, int, int]) -> U8:
    """uint8 [N, H, W, C] of an .npz file (key `images`) or of a folder of pictures; shape: the [C, H, W] that each has."""
    if path.is_dir():
        return _read_folder(path, shape)
    channels, height, width = shape
    size = f"[N, {height}, {width}, {channels}]"
    expected = f"an .npz file with {KEY!r}, uint8 {size}, or a folder of pictures of that size"
    images = read_npz(path, (KEY,), expected).get(KEY)
    if images is None:
        raise ArgumentError(f"--images {path}: found no array {KEY!r}, expected {expected}")
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels) or not len(images):
        raise ArgumentError(f"--images {path}: found {images.dtype} {list(images.shape)}, expected {expected}; convert them")
    return np.asarray(images)


def thinned(images: U8, most: int) -> U8:
    """At most so many, evenly from the whole."""
    return images[np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(np.int64)]


def read_npz(path: Path, names: Sequence[str], expected: str = "an .npz file") -> dict[str, npt.NDArray[Any]]:
    """Those of these arrays that the file holds; ArgumentError where it is none."""
    try:
        with np.load(path, allow_pickle=False) as content:
            there = content if isinstance(content, np.lib.npyio.NpzFile) else {}
            return {name: there[name] for name in names if name in there}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"--images {path}: found nothing that can be read ({error}), expected {expected}") from error


def _read_folder(path: Path, shape: tuple[int, int, int]) -> U8:
    loaded = load_images([path], shape)
    check_unchanged(path, loaded, shape)
    return loaded.images


def check_unchanged(path: Path, loaded: Loaded, shape: tuple[int, int, int]) -> None:
    """Refuse pictures of another size or kind than the model's, which reading has changed."""
    if notes := loaded.notes:
        raise ArgumentError(
            f"--images {path}: found {len(notes)} pictures that would be changed ({notes[0]}), expected "
            f"{shape[2]}x{shape[1]} as in training; convert them as the model's training data was"
        )
