"""Putting what was fitted into a bundle that is there, in one step for every reader.

Settings and starts change manifest.json alone; directions are a file beside it, so the bundle is written again around them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from engine.bundle.directions import TENSOR, Directions, encoder_digest
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.fitted import step_digest
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
    _put(path, "fitted", {"settings": list(settings), "record": dict(record)} if settings else None)


def write_starts(
    path: str | os.PathLike[str], t_starts: Sequence[int], damages: Sequence[Mapping[str, Any]], record: Mapping[str, Any]
) -> None:
    """Put a table of starts for `refine`, each damage with the fields of `StartRow`, in place of what the bundle has."""
    _put(path, "refine", {"t_starts": list(t_starts), "damages": list(map(dict, damages)), "record": dict(record)})


def _put(path: str | os.PathLike[str], key: str, fit: Mapping[str, Any] | None) -> None:
    """Replace a field of the manifest that belongs to the step's graph."""
    target = Path(path) / MANIFEST_FILE
    data = read_manifest_file(Path(path))
    manifest = parse_manifest(data, str(target))
    raw: dict[str, Any] = json.loads(data)
    raw = plain_manifest(raw | {key: fit and {"of": step_digest(manifest), **fit}}, target)
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
