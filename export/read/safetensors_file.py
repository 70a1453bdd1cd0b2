"""Weights in safetensors: one file, or an index with its shards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError, first_line

INDEX_SUFFIX = ".index.json"
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, OSError, MemoryError, RuntimeError)
MAX_INDEX = 64 << 20
PLAIN_NAME = re.compile(r"[\w][\w.+=@ -]*")  # nothing that leads out of the index's folder
MAX_NAME = 255


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the texts beside them, those that are JSON as what they say; CheckpointError for a damaged file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{path}: found a safetensors file but no reader for it, expected the package safetensors; install it with: "
            "pip install safetensors"
        ) from error
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            texts = file.metadata() or {}
    except (SafetensorError, *DAMAGED) as error:
        raise CheckpointError(
            f"{path}: found a damaged safetensors file ({first_line(error)}), expected a complete one; copy or download it "
            "again"
        ) from error
    return tensors, {key: _from_text(text) for key, text in texts.items()}


def read_index(path: Path, data: bytes) -> dict[str, tuple[str, ...]]:
    """The shards that an index names, each with its keys; CheckpointError for one that leads out of the index's folder."""
    try:
        content = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: found no JSON ({first_line(error)}), expected an index of shards; copy or download it again"
        ) from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{path}: found JSON without a weight_map, expected an index of shards, {{'weight_map': {{key: file}}}}; give "
            "the file of the weights itself"
        )
    shards: dict[str, list[str]] = {}
    for key, name in places.items():
        plain = isinstance(name, str) and PLAIN_NAME.fullmatch(name) and len(name) <= MAX_NAME
        if not plain or name.endswith(INDEX_SUFFIX):
            raise CheckpointError(
                f"{path}: found the shard {str(name)[:80]!r}, expected the name of a file beside the index; put the shards "
                "there and name them without a folder"
            )
        shards.setdefault(name, []).append(key)
    for name in shards:
        if not (path.parent / name).is_file():
            raise CheckpointError(
                f"{path}: found no {name} beside it, expected all {len(shards)} shards that it names; copy or download it"
            )
    return {name: tuple(keys) for name, keys in shards.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for one that says something twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice[:80]!r} twice")
    return found


def _from_text(text: str) -> Any:
    """safetensors metadata holds texts only; what reads as JSON is taken as such."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
