"""Images to disk: a PNG grid, a .npy array or a folder of PNG files, in grey, colour, or colour with alpha."""

from __future__ import annotations

import io
import math
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from engine.errors import ArgumentError
from engine.imaging.grid import PAD, grid, paired_rows
from engine.imaging.read import SUFFIXES, natural
from engine.places import check_file, check_folder, unwritable
from engine.result import U8

WRITTEN = (".png", ".npy")
GRID_PIXELS = 89_478_485  # above this Pillow warns whoever opens the file
# What is surely meant as a file: one of these is refused rather than made a folder. samples_t0.8 is a folder.
OTHER_FILES = (*SUFFIXES, ".npz", ".tar", ".zip", ".gz", ".tgz", ".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".h5",
               ".json", ".txt", ".csv", ".html", ".pdf", ".svg", ".mp4")  # fmt: skip


def kind_of(path: str | os.PathLike[str]) -> str:
    """".png", ".npy" or "" for a folder: by the suffix, unless there is such a folder or a slash ends the path."""
    text = os.fspath(path)
    suffix = Path(text).suffix.lower()
    return "" if text.endswith(os.sep) or os.path.isdir(text) or suffix not in WRITTEN else suffix


def check_target(
    path: str | os.PathLike[str], nbytes: int = 0, *, names: Iterable[str] = (), add: bool = False
) -> Path:
    """The place to write images to, looked at before the work is done rather than after; ArgumentError where it is none.

    nbytes: of the images in memory. names: of the files that a folder will get, without suffix; one that holds other
    pictures is refused, for two runs would be mixed, unless `add` says that they may be.
    """
    kind, suffix = kind_of(path), Path(path).suffix
    if kind:
        return check_file(path, nbytes if kind == ".npy" else nbytes // 2)
    if suffix.lower() in OTHER_FILES and not os.path.isdir(path) and not os.fspath(path).endswith(os.sep):
        raise ArgumentError(
            f"{path} ends in {suffix}; expected a .png grid, a .npy array or a folder. Choose one; {path}/ is a folder."
        )
    target = check_folder(path, nbytes // 2)  # PNG of anything but noise is about that small
    if not add:
        _check_unmixed(target, names)
    return target


def save_images(
    path: str | os.PathLike[str],
    images: U8,
    *,
    start: U8 | None = None,
    names: Sequence[str] | None = None,
    add: bool = False,
    columns: int | None = None,
) -> list[Path]:
    """Write uint8 [N, H, W, C] to `path`, `start` beside or above the images, and return the files written.

    `path` ends in .png: one grid (each row of `start` above its row of images) of so many columns. In .npy: the array
    (`start` in NAME.start.npy). Anything else is a folder of PNG files called names[i].png and names[i]-start.png; one
    that holds pictures of other names is refused, unless `add`.
    """
    names = [f"{i:05d}" for i in range(len(images))] if names is None else names
    kind = kind_of(path)
    target = check_target(path, images.nbytes, names=file_names(names, start is not None), add=add)
    try:
        if kind == ".png":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(grid_bytes(images, start, columns))
            return [target]
        if kind == ".npy":
            return _save_arrays(target, images, start)
        return _save_folder(target, images, start, names)
    except OSError as error:
        raise unwritable(target, error) from error


def file_names(names: Iterable[str], with_start: bool) -> Iterable[str]:
    """The names of the PNG files of a folder, without their suffix."""
    for name in names:
        yield name
        if with_start:
            yield f"{name}-start"


def grid_bytes(images: U8, start: U8 | None = None, columns: int | None = None) -> bytes:
    """One PNG of all images, each row of `start` above its row of images; columns: None makes it nearly square."""
    columns = columns or _columns(len(images), start is not None)
    return png_bytes(grid(images if start is None else paired_rows(start, images, columns), columns=columns))


def check_grid(path: str, count: int, image_shape: Sequence[int], with_start: bool) -> None:
    """Refuse a grid of more pixels than viewers open, and than fit in memory at ease: Pillow's limit is taken for both.

    image_shape: [C, H, W].
    """
    _, height, width = image_shape
    columns = _columns(count, with_start)
    rows = math.ceil(count / columns) * (2 if with_start else 1)
    pixels = (rows * (height + PAD) + PAD) * (columns * (width + PAD) + PAD)
    if pixels > GRID_PIXELS:
        folder = Path(path).stem if path != "-" else "samples"
        raise ArgumentError(
            f"out {path}: found {count:,} images, a grid of {pixels / 1e6:,.0f} million pixels, expected at most "
            f"{GRID_PIXELS / 1e6:.0f} million; write them to a folder: --out {shlex.quote(folder)}"
        )


def _columns(count: int, with_start: bool) -> int:
    return min(count, 8) if with_start else math.ceil(math.sqrt(count))


def png_bytes(image: U8) -> bytes:
    """uint8 [H, W, C] as a PNG file, without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _check_unmixed(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder with pictures that this run would leave there among its own."""
    try:
        there = [entry for entry in os.listdir(folder) if entry.lower().endswith(SUFFIXES) and not entry.startswith(".")]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArgumentError(f"Cannot read {folder}: {error.strerror or error}. Choose another folder.") from error
    left = set(there)
    for name in names if there else ():  # which may be a million
        left.discard(f"{name}.png")
        if not left:
            break
    if others := sorted(left, key=natural):
        raise ArgumentError(
            f"out {folder}: found {len(others)} pictures that this run would not replace, such as {others[0]}, expected "
            "none, as two runs would be mixed; choose another --out, or give --add to keep both there"
        )


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
        for suffix, stack in (("", images), ("-start", start)):
            if stack is not None:
                written.append(target / f"{name}{suffix}.png")
                written[-1].write_bytes(png_bytes(stack[index]))
    return written
