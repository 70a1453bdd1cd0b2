"""Which files does a bundle hold? A name inside the folder, its size and its SHA-256."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bundle.fields import FILE_NAME, SHA256, Fields
from engine.bundle.model import HEXADECIMAL

MANIFEST_FILE = "manifest.json"
MAX_GRAPH_BYTES = 2**31 - 1  # a protobuf message, and so an ONNX file, ends below 2 GiB


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
