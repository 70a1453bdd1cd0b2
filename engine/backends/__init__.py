"""Which runtimes are there, which one runs here, and which is chosen? One file per runtime, one line in BACKENDS."""

from __future__ import annotations

import importlib
from importlib import metadata, util
from typing import NamedTuple

from engine.backends.base import PRECISIONS, Graph, check_precision
from engine.bundle import Bundle
from engine.errors import ArgumentError, BackendError, did_you_mean
from engine.processor import Processor, this_processor

BACKENDS = {  # name -> module, which has load(bundle, role, *, precision, threads) and PRECISIONS
    "openvino": "engine.backends.openvino",
    "onnxruntime": "engine.backends.onnxruntime",
}
RULE = (
    "backend 'auto' is openvino where it is installed and the bundle lists it, else onnxruntime; "
    "precision 'auto' is bf16 with openvino on a processor with AMX bf16 tiles (amx_bf16), else f32"
)

__all__ = ["BACKENDS", "PRECISIONS", "RULE", "Choice", "Graph", "available", "choose", "choose_auto", "load"]


class Choice(NamedTuple):
    """A backend, a precision, and the sentence that says why."""

    backend: str
    precision: str
    reason: str


def available() -> dict[str, tuple[bool, str]]:
    """{backend: (whether it is installed, its version or how to install it)}, without importing any of them."""
    found = {}
    for name in BACKENDS:
        if util.find_spec(name) is None:
            found[name] = (False, f"not installed; install it with: pip install {name}")
        else:
            found[name] = (True, f"{name} {_version(name)}")
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(version unknown)"  # another distribution of the same module, such as onnxruntime-gpu


def choose_auto(bundle: Bundle, processor: Processor | None = None) -> Choice:
    """The backend and precision that RULE gives for this bundle on this machine."""
    return choose(bundle, "auto", "auto", processor)


def choose(bundle: Bundle, backend: str = "auto", precision: str = "auto", processor: Processor | None = None) -> Choice:
    """Apply RULE to what is "auto" and check what is not; nothing else is ever put in its place.

    ArgumentError for an unknown name, BackendError for what this bundle or this machine does not have.
    """
    processor = processor or this_processor()
    _check_name("backend", backend, (*BACKENDS, "auto"))
    _check_name("precision", precision, (*PRECISIONS, "auto"))
    name = _auto_backend(bundle) if backend == "auto" else _check_backend(bundle, backend)
    tiles = name == "openvino" and processor.amx_bf16
    obtained = precision if precision != "auto" else "bf16" if tiles else "f32"
    _check_available(name, obtained, processor)
    if "auto" not in (backend, precision):
        return Choice(name, obtained, f"{name} {obtained}, as asked for")
    asked = [f"{key} {value!r} asked for" for key, value in (("backend", backend), ("precision", precision))]
    given = [text for text, value in zip(asked, (backend, precision), strict=True) if value != "auto"]
    facts = f"amx_bf16 {'yes' if processor.amx_bf16 else 'no'}, {', '.join(_usable(bundle))} usable"
    return Choice(name, obtained, f"{name} {obtained}: {'; '.join([*given, RULE])} (here: {facts})")


def load(bundle: Bundle, role: str, *, backend: str, precision: str = "f32", threads: int | None = None) -> Graph:
    """Load one graph of a bundle on one backend. threads: None for what affinity and container allow."""
    _check_name("backend", backend, BACKENDS)
    _check_backend(bundle, backend)
    graph = importlib.import_module(BACKENDS[backend]).load(bundle, role, precision=precision, threads=threads)
    if not isinstance(graph, Graph):
        raise BackendError(f"backend {backend!r}: found {type(graph).__name__}, expected a Graph; mend its load()")
    return graph


def _usable(bundle: Bundle) -> list[str]:
    installed = available()
    return [name for name in BACKENDS if name in bundle.manifest.backends and installed[name][0]]


def _auto_backend(bundle: Bundle) -> str:
    usable = _usable(bundle)
    if not usable:
        raise BackendError(
            f"{bundle.path}: found no usable backend (the bundle lists {', '.join(bundle.manifest.backends)}; here: "
            f"{'; '.join(reason for _, reason in available().values())}), expected one; install one that the bundle "
            f"lists, or rebuild it with --backends {' '.join(BACKENDS)}"
        )
    return usable[0]


def _check_backend(bundle: Bundle, backend: str) -> str:
    """The name again, when the bundle lists it and it is installed."""
    if backend not in bundle.manifest.backends:
        raise BackendError(
            f"{bundle.path}: found backend {backend!r}, expected one that the bundle lists: "
            f"{', '.join(bundle.manifest.backends)}; choose one, or rebuild the bundle with --backends {backend}"
        )
    installed, reason = available()[backend]
    if not installed:
        raise BackendError(f"backend {backend!r}: found that it is {reason}")
    return backend


def _check_available(backend: str, precision: str, processor: Processor) -> None:
    """BackendError unless this backend computes in this precision on this processor."""
    module = importlib.import_module(BACKENDS[backend])
    check_precision(precision, module.PRECISIONS, backend)
    if hasattr(module, "check_processor"):
        module.check_processor(precision, processor)


def _check_name(what: str, word: str, choices: tuple[str, ...] | dict[str, str]) -> None:
    if not isinstance(word, str) or word not in choices:
        raise ArgumentError(
            f"{what}: found {word!r}, expected one of {', '.join(choices)}.{did_you_mean(str(word), choices)}"
        )
