"""Images with a table of attributes: an .npz file, or a folder of pictures with a .csv."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle.fields import is_text, shorten
from engine.errors import ArgumentError, did_you_mean
from engine.imaging import SUFFIXES, load_images
from export.training_images import U8, check_unchanged, read_images, read_npz

WITHOUT = ("none", "no", "false", "without", "0", "-1")  # values that say that something is not there
FORM = (
    "an .npz file with 'images', 'attributes' [N, A], 'attribute_names' [A] and maybe 'categories' (JSON, the values of "
    "each), or a folder of pictures with one .csv: file,NAME,NAME"
)


@dataclass(frozen=True)
class Attribute:
    """One column: the values that there are, and which of them each image has, int [N]."""

    name: str
    values: tuple[str, ...]
    codes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Contrast:
    """A direction to be fitted: towards the images where `side` is true, bool [N], of the attribute of this name."""

    name: str
    attribute: str
    side: npt.NDArray[np.bool_]


def read_table(path: Path, shape: tuple[int, int, int]) -> tuple[U8, list[Attribute]]:
    """Images of [C, H, W], uint8 [N, H, W, C], and their attributes; none where there is no table."""
    if path.is_dir():
        return _read_folder(path, shape)
    images = read_images(path, shape)
    arrays = read_npz(path, ("attributes", "attribute_names", "categories"))
    if not arrays:
        return images, []
    codes, names = arrays.get("attributes"), [str(name) for name in arrays.get("attribute_names", ())]
    if codes is None or codes.dtype.kind not in "iub" or codes.shape != (len(images), len(names)):
        found = "no attributes" if codes is None else f"attributes {codes.dtype} {list(codes.shape)}"
        raise ArgumentError(f"--images {path}: found {found} of {len(images)} images, {len(names)} names; expected {FORM}")
    categories = _categories(path, arrays.get("categories"))
    columns = zip(names, codes.T, strict=True)
    return images, [_attribute(path, name, column, categories.get(name)) for name, column in columns]


def _categories(path: Path, text: Any) -> dict[str, list[Any]]:
    try:
        found = {} if text is None else json.loads(str(text))
    except ValueError as error:
        raise ArgumentError(f"--images {path}: found categories that are no JSON ({error}), expected {FORM}") from error
    if not (isinstance(found, dict) and all(isinstance(values, list) for values in found.values())):
        raise ArgumentError(f"--images {path}: found categories {shorten(found)}, expected {{name: [values]}}")
    return found


def _attribute(path: Path, name: str, codes: npt.NDArray[Any], values: list[Any] | None) -> Attribute:
    if values is None:
        return _of_texts(name, [str(int(code)) for code in codes])
    if codes.min() < 0 or codes.max() >= len(values):
        raise ArgumentError(
            f"--images {path}: found {name} from {codes.min()} to {codes.max()}, expected indices of its {len(values)} "
            "categories"
        )
    there = np.unique(codes)  # a category without an image has no direction
    return Attribute(name, tuple(str(values[code]) for code in there), np.searchsorted(there, codes))


def _of_texts(name: str, texts: Sequence[str]) -> Attribute:
    """Values by name, those that say "without" first."""
    values = sorted(set(texts), key=lambda value: (value.lower() not in WITHOUT, value))
    return Attribute(name, tuple(values), np.array([values.index(text) for text in texts]))


def _read_folder(path: Path, shape: tuple[int, int, int]) -> tuple[U8, list[Attribute]]:
    tables = sorted(entry for entry in path.iterdir() if entry.suffix.lower() == ".csv")
    if not tables:
        return read_images(path, shape), []
    if len(tables) > 1:
        raise ArgumentError(f"--images {path}: found {len(tables)} .csv files, expected one; move the others away")
    header, rows = _read_csv(tables[0])
    files = [row[0] for row in rows]
    there = {entry.name for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES}
    twice = [name for name, count in Counter(files).items() if count > 1]
    problems = {
        "rows whose file is missing": [name for name in files if name not in there],
        "pictures without a row": sorted(there.difference(files)),
        "files in several rows": twice,
    }
    for what, names in problems.items():
        if names:
            raise ArgumentError(
                f"{tables[0]}: found {len(names)} {what} ({shorten(names[0])}), expected one row for each picture "
                "beside it; correct the table, or move the pictures"
            )
    loaded = load_images([path / name for name in files], shape)
    check_unchanged(path, loaded, shape)
    return loaded.images, [_of_texts(name, [row[i] for row in rows]) for i, name in enumerate(header[1:], 1)]


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [[word.strip() for word in row] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArgumentError(f"{path}: found no table ({error}), expected .csv in UTF-8; save it so") from error
    width = len(lines[0]) if lines else 0
    if len(lines) < 2 or width < 2:
        found = f"{len(lines)} lines of {width} columns"
        raise ArgumentError(f"{path}: found {found}, expected a line file,NAME,... and one for each picture")
    for number, row in enumerate(lines[1:], 2):
        if len(row) != width or not all(row):
            raise ArgumentError(f"{path}: found {shorten(row)} in row {number}, expected {width} values, none empty")
    return lines[0], lines[1:]


def chosen(attributes: Sequence[Attribute], names: Sequence[str]) -> list[Attribute]:
    """Those of these names, or all; ArgumentError for a name that is not there."""
    there = [attribute.name for attribute in attributes]
    for name in names:
        if name not in there:
            raise ArgumentError(
                f"--attribute: found {name!r}, expected some of {', '.join(there) or 'none, as there is no table'}."
                f"{did_you_mean(name, there)}"
            )
    return [attribute for attribute in attributes if not names or attribute.name in names]


def contrasts(attributes: Sequence[Attribute], least: int) -> list[Contrast]:
    """The directions of these attributes; ArgumentError for what gives none.

    Two values give one under the attribute's name, towards the second; more give one a value, NAME=VALUE, against all
    others. A value that says "without", of three or more, gives NAME: from it to all others.
    """
    found: list[Contrast] = []
    for contrast in (one for attribute in attributes for one in _of_attribute(attribute)):
        if not is_text(contrast.name):
            raise ArgumentError(f"attributes: found the name {shorten(contrast.name)}, expected 1..200 printable characters")
        if contrast.name in [other.name for other in found]:
            raise ArgumentError(
                f"attributes: found two directions {contrast.name!r}, expected names that do not clash; rename an attribute"
            )
        count = min(int(contrast.side.sum()), int((~contrast.side).sum()))
        if count < least:
            raise ArgumentError(
                f"{contrast.name}: found {count} images on one side, expected {least} or more on both; take more images, or "
                "leave the attribute out with --attribute"
            )
        found.append(contrast)
    return found


def _of_attribute(attribute: Attribute) -> Iterator[Contrast]:
    name, values, codes = attribute.name, attribute.values, attribute.codes
    if len(values) < 2:
        raise ArgumentError(
            f"{name}: found the value {', '.join(values)} alone, expected two or more; leave it out: --attribute OTHER"
        )
    if len(values) == 2:
        yield Contrast(name, name, codes == 1)
        return
    for code, value in enumerate(values):
        if value.lower() in WITHOUT:
            yield Contrast(name, name, codes != code)
        else:
            yield Contrast(f"{name}={value}", name, codes == code)
