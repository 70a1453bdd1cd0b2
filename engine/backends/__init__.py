"""Runtimes: which there are, which run here, and the rule that chooses one. One file a runtime, one line in BACKENDS."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from engine.backends.base import Backend, check_precision
from engine.backends.graph import Graph
from engine.bundle.graphs import PRECISIONS
from engine.bundle.reader import Bundle
from engine.commands import command
from engine.errors import ArgumentError, BackendError, did_you_mean
from engine.processor import Processor, this_processor
from engine.threads import resolve_threads

# name -> its class; importing one imports no runtime. In the order in which "auto" tries them.
BACKENDS = {
    "tensorrt_rtx": "engine.backends.tensorrt.rtx:TensorRtRtx",
    "tensorrt": "engine.backends.tensorrt.backend:TensorRt",
    "native": "engine.backends.native.backend:Native",
    "openvino": "engine.backends.openvino:OpenVino",
    "onnxruntime": "engine.backends.onnxruntime:OnnxRuntime",
    "onnxruntime-cuda": "engine.backends.onnxruntime_cuda:OnnxRuntimeCuda",
    "onnxruntime-tensorrt": "engine.backends.onnxruntime_tensorrt:OnnxRuntimeTensorRt",
}
RULE = (
    "backend 'auto' is tensorrt_rtx, then tensorrt, where it is installed and a CUDA device is present that the bundle's "
    "plans were built for (never on a machine without one); else native where the processor has AMX tiles or AVX-512 "
    "with VNNI and the bundle holds native bf16; else openvino where it is installed and the bundle lists it, else "
    "onnxruntime; precision 'auto' is fp16 with these two on a GPU, bf16 with native, with openvino bf16 where the "
    "processor has AMX (amx_bf16), else f32; "
    "onnxruntime-cuda and onnxruntime-tensorrt are used by name only"
)

__all__ = [
    "BACKENDS", "PRECISIONS", "RULE", "Backend", "Choice", "Graph", "available", "backend_class", "check_size", "choose",
    "choose_auto", "load",
]  # fmt: skip


class Choice(NamedTuple):
    """A backend, a precision, and the sentence that says why."""

    backend: str
    precision: str
    reason: str


def backend_class(name: str) -> type[Backend]:
    """The class of a backend in BACKENDS."""
    module, _, attribute = BACKENDS[name].partition(":")
    found: type[Backend] = getattr(importlib.import_module(module), attribute)
    return found


def available() -> dict[str, tuple[bool, str]]:
    """{backend: (whether it runs here, its version or how to mend that)}, without importing any runtime."""
    return {name: _available(name) for name in BACKENDS}


def _available(name: str) -> tuple[bool, str]:
    return backend_class(name).available()


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
    name = _auto_backend(bundle, precision, processor) if backend == "auto" else _check_backend(bundle, backend)
    kind = backend_class(name)
    obtained = precision if precision != "auto" else kind.default_precision(bundle, processor)
    check_precision(obtained, kind.PRECISIONS, name)
    kind.check_processor(obtained, processor)
    if "auto" not in (backend, precision):
        return Choice(name, obtained, f"{name} {obtained}, as asked for")
    asked = [f"{key} {value!r} asked for" for key, value in (("backend", backend), ("precision", precision))]
    given = [text for text, value in zip(asked, (backend, precision), strict=True) if value != "auto"]
    facts = f"amx_bf16 {'yes' if processor.amx_bf16 else 'no'}, {', '.join(_usable(bundle))} usable"
    return Choice(name, obtained, f"{name} {obtained}: {'; '.join([*given, RULE])} (here: {facts})")


def open_backend(bundle: Bundle, name: str, precision: str, threads: int, device: object = None) -> Backend:
    """A bundle on one backend."""
    return backend_class(name).open(bundle, precision, threads, device)


def load(
    bundle: Bundle,
    graph: str,
    *,
    backend: str,
    precision: str | None = None,
    threads: int | None = None,
    device: object = None,
) -> Graph:
    """Load one graph of a bundle by itself. precision: None for the backend's first; threads: None for what is allowed."""
    _check_name("backend", backend, tuple(BACKENDS))
    _check_backend(bundle, backend)
    precision = precision or backend_class(backend).PRECISIONS[0]
    opened = open_backend(bundle, backend, precision, resolve_threads(threads), device)
    try:
        return opened.load(graph)
    finally:
        opened.close()


def _usable(bundle: Bundle) -> list[str]:
    installed = available()
    listed = [name for name in BACKENDS if name in bundle.manifest.backends and installed[name][0]]
    return [name for name in listed if _takes_size(bundle, name)]


def _takes_size(bundle: Bundle, name: str) -> bool:
    return bundle.canvas is None or bundle.canvas.block is None or backend_class(name).ANY_SIZE


def check_size(bundle: Bundle, backend: str) -> None:
    """BackendError where a backend does not run the graphs of a bundle in its size."""
    if not _takes_size(bundle, backend):
        height, width = bundle.manifest.pipeline.image_shape[1:]
        own = bundle.base.manifest.pipeline.image_shape
        raise BackendError(
            f"size: found {height} x {width} with backend {backend!r}, whose plans take {own[1]} x {own[2]} alone; expected "
            "tiles of that size, or a backend that runs any. Pass overlap=0.5 too, or choose native, openvino or "
            "onnxruntime."
        )


def _auto_backend(bundle: Bundle, precision: str, processor: Processor) -> str:
    usable = [name for name in _usable(bundle) if not backend_class(name).BY_NAME_ONLY]
    if not usable:
        build = command("build", "CKPT", "--out", bundle.path, "--backends", *BACKENDS)
        raise BackendError(
            f"{bundle.path}: found no usable backend (the bundle lists {', '.join(bundle.manifest.backends)}; here: "
            f"{'; '.join(reason for _, reason in available().values())}), expected one; install one that the bundle "
            f"lists, or rebuild it with: {build}"
        )
    for name in usable:
        if backend_class(name).auto_precision(bundle, precision, processor) is not None:
            return name
    # What none would take, the first on the CPU refuses with its reason.
    return next((name for name in reversed(usable) if not backend_class(name).ON_DEVICE), usable[-1])


def _check_backend(bundle: Bundle, backend: str) -> str:
    """The name again, when the bundle lists it and it is installed."""
    if backend not in bundle.manifest.backends:
        build = command("build", "CKPT", "--out", bundle.path, "--backends", backend)
        raise BackendError(
            f"{bundle.path}: found backend {backend!r}, expected one that the bundle lists: "
            f"{', '.join(bundle.manifest.backends)}; choose one, or rebuild the bundle with: {build}"
        )
    installed, reason = _available(backend)
    if not installed:
        raise BackendError(f"backend {backend!r}: found that it is {reason}")
    check_size(bundle, backend)
    return backend


def _check_name(what: str, word: str, choices: tuple[str, ...]) -> None:
    if not isinstance(word, str) or word not in choices:
        raise ArgumentError(
            f"{what}: found {word!r}, expected one of {', '.join(choices)}.{did_you_mean(str(word), choices)}"
        )
