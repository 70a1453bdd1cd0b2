"""Pictures, folders of them and .npy arrays as one stack of images at a model's size.

A folder gives its pictures in natural order (a2 before a10, capital or not), without hidden files and without what is in
folders inside it. What cannot be read is reported and left out, or ends the reading, as the caller likes.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ArgumentError
from engine.imaging.fit import check_fit, fitted
from engine.imaging.picture import MODES, RGB, decode_picture, parse_background, read_picture
from engine.result import U8

# Taken from a folder, in any case. The last line is what people take for pictures and Pillow does not read: to be reported.
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".qoi", ".ico",
    ".heic", ".heif", ".jxl",
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """Images that were read, and what there is to say about them.

    images      uint8 [N, H, W, C]
    sources     where each is from: a path, or of an array that holds several FILE.npy[3]
    notes       one a picture that is not shown as it is in the file: resized, cropped, a transparent part, a dropped frame
    ignored     one a folder that holds other files than pictures
    unreadable  one a file or folder that was left out because it cannot be read
    """

    images: U8
    sources: list[str]
    notes: list[str]
    ignored: list[str]
    unreadable: list[str]


def load_images(
    paths: Sequence[str | os.PathLike[str]],
    shape: tuple[int, int, int],
    *,
    background: str = "white",
    fit: str = "crop",
    strict: bool = True,
) -> Loaded:
    """Read picture files, folders of them and .npy arrays (uint8 [N, H, W, C] or [H, W, C], exactly as they are).

    shape       [C, H, W] of the images that the bundle makes
    background  the colour (a name, or #rrggbb) below what is transparent, unless C is 4, and around what is padded
    fit         "crop" to the proportions around the centre, or "pad" to them; then resized, see engine/imaging/fit.py
    strict      raise at the first file that cannot be read; otherwise it is in `unreadable`, and the others are read
    ArgumentError where nothing can be read.
    """
    colour = parse_background(background)
    check_fit(fit)
    stacks: list[U8] = []
    result = Loaded(np.empty((0,), np.uint8), [], [], [], [])
    for path in map(Path, paths):
        try:
            files = _files_of(path, result.ignored)
        except ArgumentError as error:
            _leave_out(error, strict, result)
            continue
        for file in files:
            try:
                if file.suffix.lower() == ".npy":
                    found, note = _load_array(file, shape), ""
                else:
                    found, note = _load_picture(file, shape, colour, fit)
            except ArgumentError as error:
                _leave_out(error, strict, result)
                continue
            stacks.append(found)
            result.sources.extend([str(file)] if len(found) == 1 else [f"{file}[{i}]" for i in range(len(found))])
            if note:
                result.notes.append(f"{file.name}: {note}")
    if not stacks:
        raise ArgumentError(_nothing(result.unreadable))
    return Loaded(np.concatenate(stacks), result.sources, result.notes, result.ignored, result.unreadable)


# Of pictures that come over a network: what browsers show. The others keep more parsers, and sizes inside sizes (ICO).
SENT_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")


def decode_images(
    files: Sequence[bytes],
    shape: tuple[int, int, int],
    *,
    background: str = "white",
    fit: str = "crop",
    max_pixels: int | None = None,
    what: str = "images",
) -> Loaded:
    """As `load_images`, of pictures in memory that a stranger may have sent: of SENT_FORMATS, with at most `max_pixels`.

    what: their name in messages.
    """
    colour, stacks = parse_background(background), []
    check_fit(fit)
    result = Loaded(np.empty((0,), np.uint8), [], [], [], [])
    for index, data in enumerate(files):
        name = f"{what}[{index}]"
        _check_channels(name, shape)
        decoded = decode_picture(io.BytesIO(data), name, shape[0], colour, formats=SENT_FORMATS, max_pixels=max_pixels)
        found, note = _at_size(*decoded, shape, colour, fit)
        stacks.append(found)
        result.sources.append(name)
        result.notes.extend([f"{name}: {note}"] if note else [])
    if not stacks:
        raise ArgumentError(_nothing([]))
    return replace(result, images=np.concatenate(stacks))


def natural(name: str) -> tuple[list[str | int], str]:
    """The key of natural order: digits count as numbers and letters without their case; ties go by the name itself."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)], name


def _leave_out(error: ArgumentError, strict: bool, result: Loaded) -> None:
    if strict:
        raise error
    result.unreadable.append(str(error))


def _nothing(unreadable: Sequence[str]) -> str:
    if not unreadable:
        return "No images were given; expected image files, a folder of them, or a .npy array."
    if len(unreadable) == 1:
        return unreadable[0]
    return f"None of {len(unreadable)} places could be read, expected at least one image. {' '.join(unreadable[:3])}"


def _files_of(path: Path, ignored: list[str]) -> list[Path]:
    """The file itself, or the pictures of a folder in natural order."""
    try:
        if not path.is_dir():
            if not path.exists():
                raise ArgumentError(f"{path} does not exist; expected an image, a folder of images, or a .npy array.")
            return [path]
        names = sorted((name for name in os.listdir(path) if not name.startswith(".")), key=natural)
        files = [path / name for name in names if not (path / name).is_dir()]
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not pictures:
        raise ArgumentError(f"{path} holds no images; expected files ending in {', '.join(SUFFIXES)}.")
    others = [file.name for file in files if file.suffix.lower() not in SUFFIXES]
    if others:
        ignored.append(f"{path}: {len(others)} files are ignored that are not pictures, such as {others[0]}")
    return pictures


def _load_array(path: Path, shape: tuple[int, int, int]) -> U8:
    channels, height, width = shape
    wanted = f"uint8 [N, {height}, {width}, {channels}]"
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArgumentError(f"{path} cannot be read as .npy: {error}. Expected {wanted}.") from error
    if not isinstance(array, np.ndarray):
        raise ArgumentError(f"{path} holds several arrays; expected one, {wanted}. Save it with numpy.save.")
    array = array[None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or array.shape[1:] != (height, width, channels) or not len(array):
        raise ArgumentError(
            f"{path} holds {array.dtype} {list(array.shape)}; expected {wanted}. Save it so, or pass pictures."
        )
    return array


def _load_picture(path: Path, shape: tuple[int, int, int], background: RGB, fit: str) -> tuple[U8, str]:
    _check_channels(str(path), shape)
    return _at_size(*read_picture(path, shape[0], background), shape, background, fit)


def _check_channels(name: str, shape: tuple[int, int, int]) -> None:
    if shape[0] not in MODES:
        raise ArgumentError(f"{name}: found a picture, expected a .npy array, as the images have {shape[0]} channels")


def _at_size(picture: Any, notes: list[str], shape: tuple[int, int, int], background: RGB, fit: str) -> tuple[U8, str]:
    """uint8 [1, H, W, C], and what was done and dropped."""
    pixels, resized = fitted(picture, (shape[2], shape[1]), fit, background)
    return pixels[None], ", ".join([*([resized] if resized else []), *notes])
