"""Bundles whose manifest says something else: copies of a good one, written as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.bundle.files import MANIFEST_FILE
from engine.bundle.writer import write_bundle


def changed_bundle(source: Path, target: Path, changes: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Path:
    """`source` with these fields of its manifest replaced (objects: their keys; functions: by what they make of it),
    and these files added. Files that nothing names any more are left out."""
    manifest: dict[str, Any] = json.loads((source / MANIFEST_FILE).read_text())
    for name, value in changes.items():
        known = manifest.get(name)
        manifest[name] = value(known) if callable(value) else {**known, **value} if isinstance(known, dict) else value
    named = {entry["file"] for entry in manifest["graphs"].values()}
    named |= {file["file"] for engine in manifest["engines"] for file in engine["files"].values()}
    named |= {manifest["prior"]["file"]} if manifest["prior"] else set()
    kept: dict[str, bytes | Path] = {path.name: path for path in source.iterdir() if path.name in named}
    write_bundle(target, manifest, {**kept, **(files or {})})
    return target
