"""The two files of a golden model, of any family: its config.json, and what the reference computed with it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np


@functools.cache
def config(folder: Path) -> dict[str, Any]:
    """config.json."""
    return dict(json.loads((folder / "config.json").read_text()))


@functools.cache
def expected(folder: Path) -> dict[str, np.ndarray]:
    """expected.npz."""
    with np.load(folder / "expected.npz") as arrays:
        return dict(arrays)
