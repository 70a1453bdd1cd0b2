"""Folders that tests build at length and keep: one process builds, other workers and later runs copy.

A kept folder is taken again where this project's sources, the recipes of the tests and the packages that build are the same.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Shared by all runs of the tests; DIFFUSEVAE_TEST_BUNDLES names another.
KEPT = Path(os.environ.get("DIFFUSEVAE_TEST_BUNDLES", ROOT / "build" / "bundles"))
RECIPES = ("tests/golden_models.py", "tests/native_models.py")
SOURCES = ("engine", "export", "kernels", "tests/golden", "tests/conftest.py", *RECIPES)
PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "safetensors", "torch")
DAY = 24 * 60 * 60


def copy_of_kept(name: str, build: Callable[[Path], object], folder: Path) -> Path:
    """`folder`, with what `build` makes in the folder that it is given; built only where it is not kept."""
    kept = KEPT / _digest() / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            partial = kept.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            build(partial)
            partial.rename(kept)  # a build that fails or is stopped leaves nothing to take
    return Path(shutil.copytree(kept, folder, dirs_exist_ok=True))


@functools.cache
def _digest() -> str:
    """What the sources and packages are; folders of others are removed after a day."""
    digest = hashlib.sha256("\0".join(f"{name} {version(name)}" for name in PACKAGES).encode())
    for path in sorted(path for source in SOURCES for path in (ROOT / source, *(ROOT / source).rglob("*"))):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    for other in KEPT.glob("*"):
        if other.name != digest.hexdigest() and other.stat().st_mtime < time.time() - DAY:
            shutil.rmtree(other)
    return digest.hexdigest()
