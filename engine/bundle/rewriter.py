"""Putting what was fitted, or what comes next, into a bundle that is there, in one step for every reader.

Settings, starts and the next bundle change manifest.json alone; directions are a file beside it, so the bundle is written
again around them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from engine.bundle.directions import TENSOR, Directions, encoder_digest
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.fitted import step_digest
from engine.bundle.following import NextSpec
from engine.bundle.manifest import check_manifest, parse_manifest
from engine.bundle.reader import Bundle, read_manifest_file
from engine.bundle.writer import Content, flush_folder, plain_manifest, write_bundle, write_manifest
from engine.errors import BundleError
from engine.places import check_file

DIRECTIONS_FILE = "directions.safetensors"


def check_rewritable(path: str | os.PathLike[str]) -> None:
    """ArgumentError where the manifest of a bundle cannot be written, said before the work."""
    check_file(Path(path) / MANIFEST_FILE)


def write_fitted(
    path: str | os.PathLike[str], settings: Sequence[Mapping[str, Any]], record: Mapping[str, Any]
) -> None:
    """Put settings, each as `as_defaults` makes them, in place of those that the bundle has; none: `fitted` is null.

    record: how they were found, as plain JSON values. BundleError where the bundle refuses them or cannot be written.
    """
    fitted = {"of": _digest(path), "settings": list(settings), "record": dict(record)}
    _put(path, "fitted", fitted if settings else None)


def write_starts(
    path: str | os.PathLike[str], t_starts: Sequence[int], damages: Sequence[Mapping[str, Any]], record: Mapping[str, Any]
) -> None:
    """Put a table of starts for `refine`, each damage with the fields of `StartRow`, in place of what the bundle has."""
    starts = {"t_starts": list(t_starts), "damages": list(map(dict, damages)), "record": dict(record)}
    _put(path, "refine", {"of": _digest(path), **starts})


def write_next(path: str | os.PathLike[str], spec: NextSpec | None) -> None:
    """Name the bundle that goes on with this one's images, in place of what the bundle names; None: it names none.

    BundleError where the bundle refuses it or cannot be written. `engine.stages.name_next` checks that the two fit.
    """
    _put(path, "next", None if spec is None else asdict(spec))


def _digest(path: str | os.PathLike[str]) -> str:
    """That of the step's graph, to which what was fitted belongs."""
    return step_digest(parse_manifest(read_manifest_file(Path(path)), str(Path(path) / MANIFEST_FILE)))


def _put(path: str | os.PathLike[str], key: str, value: Mapping[str, Any] | None) -> None:
    """Replace a field of the manifest."""
    target = Path(path) / MANIFEST_FILE
    data = read_manifest_file(Path(path))
    parse_manifest(data, str(target))
    raw: dict[str, Any] = plain_manifest(json.loads(data) | {key: value}, target)
    check_manifest(raw, str(target))
    part = target.with_name(f".{MANIFEST_FILE}.{os.getpid()}")
    try:
        write_manifest(part, raw)
        os.replace(part, target)
        flush_folder(target.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BundleError(
            f"{target}: found that it cannot be written ({error.strerror or error}), expected a folder with room and write "
            "permission; the bundle is as it was"
        ) from error


def write_directions(bundle: Bundle, directions: Directions, record: Mapping[str, Any]) -> None:
    """Put directions of the drawn input in place of those that the bundle has.

    record: how they were found, as plain JSON values. BundleError where the bundle refuses them or cannot be written.
    """
    raw, drawn = json.loads(bundle.read_manifest()), bundle.manifest.drawn
    old = bundle.manifest.directions
    files: dict[str, Content] = {spec.file: bundle.chunks(spec) for spec in bundle.manifest.files if spec != old}
    files[DIRECTIONS_FILE] = save({TENSOR: directions.vectors})
    raw["directions"] = {
        "input": drawn.name if drawn else None,
        "names": list(directions.names),
        "file": DIRECTIONS_FILE,
        "of": encoder_digest(bundle.manifest),
        "record": dict(record),
    }
    write_bundle(bundle.path, raw, files)
