"""How a bundle is to be served: what a user may choose, checked against the bundle before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.bundle.manifest import Manifest
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError
from engine.serving.choice import backend_for, check_cascade, check_precision, max_steps

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAME_RULE = "letters, digits, '.', '_' and '-', at most 100, a letter or digit first: it is a folder and a part of URLs"
GRAPH_SUFFIX = "_graph"  # of the stock variant's name


@dataclass(frozen=True)
class Serving:
    """What a user chose; None where the bundle or the server decides."""

    name: str | None = None
    max_batch: int = 16
    delay_us: int = 2000
    instances: int = 1
    threads: int | None = None
    kind: str = "cpu"
    backend: str | None = None
    precision: str = "auto"
    max_steps: int | None = None
    max_queue: int = 0
    previews: bool = False


@dataclass(frozen=True)
class Settled:
    """A checked choice for one bundle; threads alone may be left to the server."""

    name: str
    max_batch: int
    delay_us: int
    instances: int
    threads: int | None
    kind: str
    backend: str
    precision: str
    max_steps: int
    max_queue: int
    previews: bool


def settle(bundle: Bundle, chosen: Serving, later: Sequence[Bundle] = ()) -> Settled:
    """Settle what is open and check the rest. ArgumentError, BackendError or BundleError says what cannot be.

    later: the stages after the bundle's, of a cascade; they run on its backend.
    """
    manifest = bundle.manifest
    for name, value, low, high in (
        ("max_batch", chosen.max_batch, 1, 4096),
        ("delay_us", chosen.delay_us, 0, 60_000_000),
        ("instances", chosen.instances, 1, 1024),
        ("threads", chosen.threads, 1, 4096),
        ("max_queue", chosen.max_queue, 0, 2**31 - 1),
    ):
        _check_range(name, value, low, high)
    backend = backend_for(manifest, chosen.kind, chosen.backend)
    check_precision(bundle, backend, chosen.precision)
    for stage in later:
        check_precision(stage, backend_for(stage.manifest, chosen.kind, backend), chosen.precision)
    if later:
        check_cascade((bundle, *later))
        if chosen.previews:
            raise ArgumentError(
                "previews: found them for a cascade, expected none: its stages make several sizes; leave --previews out"
            )
    open_fields: dict[str, Any] = {
        "name": name_for(manifest, chosen.name),
        "backend": backend,
        "max_steps": max_steps(manifest, chosen.max_steps, [stage.manifest for stage in later]),
    }
    return Settled(**(vars(chosen) | open_fields))


def name_for(manifest: Manifest, asked: str | None) -> str:
    """The model's name: as asked for, or the bundle's own with what a name may not hold replaced by '_'."""
    if asked is None:
        own = re.sub(r"[^A-Za-z0-9._-]+", "_", manifest.name)[:100].strip("._-")
        asked = own.removesuffix(GRAPH_SUFFIX) or "model"
    if asked.endswith(GRAPH_SUFFIX):
        raise ArgumentError(
            f"name: found {asked!r}, expected one that does not end in {GRAPH_SUFFIX}, as the whole-sampler variant of "
            "another model does; choose another --name"
        )
    if not NAME.fullmatch(asked):
        raise ArgumentError(f"name: found {asked!r}, expected {NAME_RULE}; choose another --name")
    return asked


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        option = name.replace("_", "-")
        raise ArgumentError(f"{name}: found {value}, expected {low} to {high}; choose another --{option}")
