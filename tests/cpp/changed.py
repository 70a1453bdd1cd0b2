"""How do tests get a bundle whose manifest says something else? A copy of one, written as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.bundle.manifest import MANIFEST_FILE
from engine.bundle.writer import write_bundle


def changed_bundle(source: Path, target: Path, changes: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Path:
    """`source` with these fields of its manifest replaced (objects: their keys), and these files added."""
    manifest: dict[str, Any] = json.loads((source / MANIFEST_FILE).read_text())
    for name, value in changes.items():
        known = manifest[name]
        manifest[name] = {**known, **value} if isinstance(known, dict) else value
    kept: dict[str, bytes | Path] = {path.name: path for path in source.iterdir() if path.name != MANIFEST_FILE}
    write_bundle(target, manifest, {**kept, **(files or {})})
    return target
