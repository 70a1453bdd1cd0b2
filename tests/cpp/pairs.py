"""A bundle opened in Python and in C at once, and the same request put to both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import Sampler
from tests.cpp.capi import CSampler, Library, open_c

Pair = tuple[Sampler, CSampler]


@contextlib.contextmanager
def opened(
    library: Library, path: Path, max_batch: int = 64, backend: str = "openvino", precision: str = "f32", **size: Any
) -> Iterator[Pair]:
    """A bundle in Python and in C; size: height, width and overlap, of another one."""
    other = {"size": (size["height"], size["width"]), "overlap": size["overlap"]} if size else {}
    python = Sampler(path, backend, precision, 2, max_batch=max_batch, **other)
    run: dict[str, Any] = {"backend": backend, "precision": precision, "max_batch": max_batch}
    with python as ours, open_c(library, path, **run, **size) as theirs:
        yield ours, theirs


def check(pair: Pair, **given: Any) -> None:
    """The same bits and the same setting, but for how the timesteps were spaced, which C does not tell."""
    batch, found = pair[0].sample(3, **given), pair[1].sample(3, values=(), **given)
    assert found.x.tobytes() == batch.x.tobytes()
    assert found.images.tobytes() == batch.images.tobytes()
    assert found.setting | {"spacing": None} == vars(batch.setting) | {"spacing": None}
