"""Images on disk: PNG grids, folders of PNG files and .npy arrays, in grey, colour, or colour with alpha."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ArgumentError
from engine.result import U8

READABLE = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels


def grid(images: U8, *, columns: int | None = None, pad: int = 2, background: int = 255) -> U8:
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


def check_target(path: str | os.PathLike[str]) -> Path:
    """The place to write to; refuses a suffix that is not written, before the work is done rather than after."""
    target = Path(path)
    if target.suffix.lower() not in ("", ".png", ".npy") and not target.is_dir():
        raise ArgumentError(f"{target} ends in {target.suffix}; expected a .png grid, a .npy array or a folder (no suffix).")
    return target


def save_images(
    path: str | os.PathLike[str], images: U8, *, start: U8 | None = None, names: Sequence[str] | None = None
) -> list[Path]:
    """Write uint8 [N, H, W, C] to `path`, `start` beside or above the images, and return the files written.

    `path` ends in .png: one grid (each row of `start` above its row of images). In .npy: the array (`start` in
    NAME.start.npy). Anything else is a folder of PNG files called names[i].png and names[i]-start.png.
    """
    target = check_target(path)
    try:
        if target.suffix.lower() == ".png":
            return [_save_grid(target, images, start)]
        if target.suffix.lower() == ".npy":
            return _save_arrays(target, images, start)
        return _save_folder(target, images, start, names or [f"{i:05d}" for i in range(len(images))])
    except OSError as error:
        raise ArgumentError(
            f"Cannot write {target}: {error.strerror or error}. Choose a place that can be written."
        ) from error


def png_bytes(image: U8) -> bytes:
    """uint8 [H, W, C] as a PNG file, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def load_images(paths: Sequence[str | os.PathLike[str]], shape: tuple[int, int, int]) -> tuple[U8, list[str]]:
    """Read image files, folders or .npy arrays as uint8 [N, H, W, C], with a note for each one resized.

    shape: [C, H, W] of the images that the bundle makes. Pictures are cropped around their centre to its proportions and
    resized with Lanczos; .npy arrays must fit as they are.
    """
    stacks: list[U8] = []
    notes: list[str] = []
    for path in _expand(paths):
        if path.suffix.lower() == ".npy":
            stacks.append(_load_array(path, shape))
            continue
        image, note = _load_picture(path, shape)
        stacks.append(image[None])
        if note:
            notes.append(note)
    return np.concatenate(stacks), notes


def _save_grid(target: Path, images: U8, start: U8 | None) -> Path:
    columns = math.ceil(math.sqrt(len(images))) if start is None else min(len(images), 8)
    shown = images if start is None else paired_rows(start, images, columns)
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_png(target, grid(shown, columns=columns))
    return target


def _save_arrays(target: Path, images: U8, start: U8 | None) -> list[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    np.save(target, images)
    if start is None:
        return [target]
    beside = target.with_suffix(".start.npy")
    np.save(beside, start)
    return [target, beside]


def _save_folder(target: Path, images: U8, start: U8 | None, names: Sequence[str]) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for index, name in enumerate(names):
        written.append(target / f"{name}.png")
        _write_png(written[-1], images[index])
        if start is not None:
            written.append(target / f"{name}-start.png")
            _write_png(written[-1], start[index])
    return written


def _write_png(path: Path, image: U8) -> None:
    path.write_bytes(png_bytes(image))


def _expand(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in READABLE)
            if not inside:
                raise ArgumentError(f"{path} holds no images; expected files ending in {', '.join(READABLE)}.")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ArgumentError(f"{path} does not exist; expected an image, a folder of images, or a .npy array.")
    if not found:
        raise ArgumentError("No images were given; expected image files, a folder of them, or a .npy array.")
    return found


def _load_array(path: Path, shape: tuple[int, int, int]) -> U8:
    channels, height, width = shape
    wanted = f"uint8 [N, {height}, {width}, {channels}]"
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArgumentError(f"{path} cannot be read as .npy: {error}. Expected {wanted}.") from error
    array = array[None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or array.shape[1:] != (height, width, channels) or not len(array):
        raise ArgumentError(
            f"{path} holds {array.dtype} {list(array.shape)}; expected {wanted}. Save it so, or pass pictures."
        )
    return array


def _load_picture(path: Path, shape: tuple[int, int, int]) -> tuple[U8, str]:
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            picture = opened.convert(MODES[channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArgumentError(f"{path} cannot be read as an image: {error}. Expected {', '.join(READABLE)}.") from error
    found = picture.size
    if found == (width, height):
        return _planes(picture), ""
    box = _crop(found, (width, height))
    resized = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return _planes(resized), f"{path.name}: {found[0]}x{found[1]} cropped and resized to {width}x{height}"


def _crop(found: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box of the wanted proportions around the centre of a picture: left, top, right, bottom.

    Whole pixels wherever the proportions allow it: a box between them would blur what it keeps.
    """
    scale = min(found[0] / wanted[0], found[1] / wanted[1])
    width, height = (min(size, round(scale * part)) for size, part in zip(found, wanted, strict=True))
    left, top = (found[0] - width) // 2, (found[1] - height) // 2
    return left, top, left + width, top + height


def _planes(picture: Any) -> U8:
    """A picture as uint8 [H, W, C]; Pillow leaves a single channel out."""
    array = np.asarray(picture, np.uint8)
    return array[:, :, None] if array.ndim == 2 else array
