"""Files of a bundle: a name inside the folder, a size and a SHA-256."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from engine.bundle.fields import Fields

MANIFEST_FILE = "manifest.json"
MAX_GRAPH_BYTES = 2**31 - 1  # a protobuf message, and so an ONNX file, ends below 2 GiB


@dataclass(frozen=True)
class FileSpec:
    """One file of a bundle."""

    file: Annotated[str, parse_file_name]
    size: Annotated[int, Fields.integer, 1, 2**40]
    sha256: Annotated[str, Fields.sha256]


def parse_file_name(fields: Fields, key: str) -> str:
    """The name of a file that is not the manifest itself."""
    name = fields.file_name(key)
    if name.lower() == MANIFEST_FILE:
        fields.refuse(key, f"another name than {MANIFEST_FILE}")
    return name
