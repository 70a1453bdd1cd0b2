"""Files of a bundle: a name inside the folder, a size and a SHA-256."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bundle.fields import FILE_NAME, SHA256, Fields
from engine.bundle.limits import MAX_GRAPH_BYTES

MANIFEST_FILE = "manifest.json"
HEXADECIMAL = "a SHA-256 of 64 lower-case hexadecimal digits"


@dataclass(frozen=True)
class FileSpec:
    """One file of a bundle."""

    file: str
    size: int
    sha256: str


def parse_file(fields: Fields, limit: int = MAX_GRAPH_BYTES) -> FileSpec:
    """The fields `file`, `size` and `sha256` of an entry."""
    spec = FileSpec(
        file=fields.matching("file", FILE_NAME, "a plain file name inside the bundle (letters, digits, '.', '_', '-')"),
        size=fields.integer("size", 1, limit),
        sha256=fields.matching("sha256", SHA256, HEXADECIMAL),
    )
    if spec.file.lower() == MANIFEST_FILE:
        fields.refuse("file", f"another name than {MANIFEST_FILE}")
    return spec
