"""How a bundle is to be served: what a user may choose, checked against the bundle before anything is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from engine.backends import BACKENDS, PRECISIONS
from engine.bundle.engines import ENGINE_FILES
from engine.bundle.manifest import Manifest
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, BackendError, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAME_RULE = "letters, digits, '.', '_' and '-', at most 100, a letter or digit first: it is a folder and a part of URLs"
# In the order of preference. native: a sample is the same bit for bit in any batch, on any number of threads.
CPU_BACKENDS = ("native", "openvino", "onnxruntime")
GPU_BACKENDS = ("tensorrt", "tensorrt_rtx", "onnxruntime-cuda", "onnxruntime-tensorrt")
GRAPH_SUFFIX = "_graph"  # of the stock variant's name
KINDS = {"cpu": CPU_BACKENDS, "gpu": GPU_BACKENDS}
MAX_STEPS = 100


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


def settle(bundle: Bundle, chosen: Serving) -> Settled:
    """Settle what is open and check the rest. ArgumentError, BackendError or BundleError says what cannot be."""
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
    _check_precision(bundle, backend, chosen.precision)
    open_fields: dict[str, Any] = {
        "name": name_for(manifest, chosen.name),
        "backend": backend,
        "max_steps": _max_steps(manifest, chosen.max_steps),
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


def backend_for(manifest: Manifest, kind: str, asked: str | None) -> str:
    """The backend by name. Never 'auto': a server must not run on something else because a package is missing."""
    if kind not in KINDS:
        raise ArgumentError(f"kind: found {kind!r}, expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    allowed = KINDS[kind]
    usable = [name for name in allowed if name in manifest.backends and _built_for(manifest, name)]
    if asked is None:
        if not usable:
            raise BackendError(
                f"backend: found a bundle for {', '.join(manifest.backends)}, expected one for --kind {kind}: "
                f"{', '.join(allowed)}; choose another --kind, or build the bundle with --backends {allowed[0]}"
            )
        return usable[0]
    if asked not in BACKENDS:
        raise ArgumentError(
            f"backend: found {asked!r}, expected one of {', '.join(allowed)}.{did_you_mean(asked, BACKENDS)}"
        )
    if asked not in allowed:
        other = next(name for name in KINDS if name != kind)
        raise ArgumentError(
            f"backend: found {asked!r} with --kind {kind}, expected one of {', '.join(allowed)}; add --kind {other}, or "
            "choose one of these"
        )
    if asked not in usable:
        raise BackendError(
            f"backend: found {asked!r}, expected one that the bundle was built for: {', '.join(usable) or 'none'}; choose "
            f"one, or build the bundle with --backends {asked}"
        )
    return asked


def _built_for(manifest: Manifest, backend: str) -> bool:
    """Whether a backend that runs engines of its own has one of the network; the others run the bundle's graphs."""
    engines = {engine.backend for engine in manifest.engines if engine.graph == manifest.pipeline.step.graph}
    return backend not in ENGINE_FILES or backend in engines


def _check_precision(bundle: Bundle, backend: str, precision: str) -> None:
    choices = ("auto", *PRECISIONS)
    if precision not in choices:
        raise ArgumentError(
            f"precision: found {precision!r}, expected one of {', '.join(choices)}.{did_you_mean(precision, choices)}"
        )
    if precision != "auto" and backend in ENGINE_FILES:
        bundle.engine(backend, precision, bundle.manifest.pipeline.step.graph)


def _max_steps(manifest: Manifest, asked: int | None) -> int:
    """The most steps that a request may ask for; what the bundle records must be among them."""
    recorded, T = manifest.defaults.steps, manifest.schedule.T
    if asked is None:
        return min(T, max(MAX_STEPS, recorded))
    if not recorded <= asked <= T:
        raise ArgumentError(
            f"max_steps: found {asked}, expected {recorded} (what the bundle records, and a request without a setting "
            f"gets) to {T}, the timesteps that the model was trained with; choose another --max-steps"
        )
    return asked


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        option = name.replace("_", "-")
        raise ArgumentError(f"{name}: found {value}, expected {low} to {high}; choose another --{option}")
