"""Which runtimes are there, which one runs here, and which is chosen? One file per runtime, one line in BACKENDS."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata, util
from typing import NamedTuple

from engine.backends.base import PRECISIONS, Graph, check_precision
from engine.backends.native import backend as native
from engine.backends.tensorrt import choice as gpu_choice
from engine.bundle.reader import Bundle
from engine.chunk import ChunkEngine
from engine.device import context as devices
from engine.device.context import Device
from engine.errors import ArgumentError, BackendError, did_you_mean
from engine.processor import Processor, this_processor

BACKENDS = {  # name -> module, which has load(bundle, role, *, precision, threads) and PRECISIONS
    "native": "engine.backends.native.backend",
    "openvino": "engine.backends.openvino",
    "onnxruntime": "engine.backends.onnxruntime",
    "onnxruntime-cuda": "engine.backends.onnxruntime_cuda",
    "onnxruntime-tensorrt": "engine.backends.onnxruntime_tensorrt",
    "tensorrt_rtx": "engine.backends.tensorrt.rtx",
    "tensorrt": "engine.backends.tensorrt.backend",
}
GPU_BACKENDS = ("tensorrt_rtx", "tensorrt")  # these take a device, and run whole chunks on it
# Never chosen by "auto": whether their provider works is known only once a session has been tried.
BY_NAME_ONLY = ("onnxruntime-cuda", "onnxruntime-tensorrt")
RULE = (
    "backend 'auto' is tensorrt_rtx, then tensorrt, where it is installed and a CUDA device is present that the bundle's "
    "plans were built for (never on a machine without one); else native where the processor has AMX tiles or AVX-512 "
    "with VNNI and the bundle holds native bf16; else openvino where it is installed and the bundle lists it, else "
    "onnxruntime; precision 'auto' is fp16 with these two on a GPU, bf16 with native, with openvino bf16 where the "
    "processor has AMX (amx_bf16), else f32; "
    f"{' and '.join(BY_NAME_ONLY)} are used by name only"
)

__all__ = [
    "BACKENDS", "GPU_BACKENDS", "PRECISIONS", "RULE", "Choice", "Graph", "available", "choose", "choose_auto",
    "chunk_engine", "load", "open_device",
]  # fmt: skip


class Choice(NamedTuple):
    """A backend, a precision, and the sentence that says why."""

    backend: str
    precision: str
    reason: str


def available() -> dict[str, tuple[bool, str]]:
    """{backend: (whether it runs here, its version or how to mend that)}, without importing any runtime."""
    return {name: _available(name) for name in BACKENDS}


def _available(name: str) -> tuple[bool, str]:
    own = getattr(importlib.import_module(BACKENDS[name]), "available", None)  # these modules import no runtime
    if own is not None:
        found: tuple[bool, str] = own()
        return found
    if util.find_spec(name) is None:
        return False, f"not installed; install it with: pip install {name}"
    return True, f"{name} {_version(name)}"


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
    name = _auto_backend(bundle, precision, processor) if backend == "auto" else _check_backend(bundle, backend)
    obtained = precision if precision != "auto" else _auto_precision(bundle, name, processor)
    _check_available(name, obtained, processor)
    if "auto" not in (backend, precision):
        return Choice(name, obtained, f"{name} {obtained}, as asked for")
    asked = [f"{key} {value!r} asked for" for key, value in (("backend", backend), ("precision", precision))]
    given = [text for text, value in zip(asked, (backend, precision), strict=True) if value != "auto"]
    facts = f"amx_bf16 {'yes' if processor.amx_bf16 else 'no'}, {', '.join(_usable(bundle))} usable"
    return Choice(name, obtained, f"{name} {obtained}: {'; '.join([*given, RULE])} (here: {facts})")


def load(
    bundle: Bundle,
    role: str,
    *,
    backend: str,
    precision: str = "f32",
    threads: int | None = None,
    device: Device | None = None,
) -> Graph:
    """Load one graph of a bundle on one backend. threads: None for what affinity and container allow.

    device: of a GPU backend, None for the one that is current in this thread or the first; others take none.
    """
    _check_name("backend", backend, BACKENDS)
    _check_backend(bundle, backend)
    more = {"device": device} if backend in GPU_BACKENDS else {}
    graph = importlib.import_module(BACKENDS[backend]).load(bundle, role, precision=precision, threads=threads, **more)
    if not isinstance(graph, Graph):
        raise BackendError(f"backend {backend!r}: found {type(graph).__name__}, expected a Graph; mend its load()")
    return graph


def open_device(backend: str, choice: object) -> Device | None:
    """The GPU that `choice` means (engine/device.py) for a GPU backend; None for a backend on the CPU, which takes none."""
    if backend in GPU_BACKENDS:
        return devices.open_device(choice)
    if choice is not None:
        raise ArgumentError(
            f"device: found {choice!r} with backend {backend!r}, which runs on the CPU; expected none: leave it out, or "
            f"choose one of {', '.join(GPU_BACKENDS)}"
        )
    return None


def chunk_engine(backend: str, bundle: Bundle, graphs: Mapping[str, Graph]) -> ChunkEngine | None:
    """What runs whole chunks by itself, over loaded graphs; None for a backend that leaves the chain to the runner."""
    module = importlib.import_module(BACKENDS[backend])
    engine: ChunkEngine | None = module.chunk_engine(bundle, graphs) if hasattr(module, "chunk_engine") else None
    return engine


def _usable(bundle: Bundle) -> list[str]:
    installed = available()
    return [name for name in BACKENDS if name in bundle.manifest.backends and installed[name][0]]


def _auto_backend(bundle: Bundle, precision: str, processor: Processor) -> str:
    usable = [name for name in _usable(bundle) if name not in BY_NAME_ONLY]
    if not usable:
        raise BackendError(
            f"{bundle.path}: found no usable backend (the bundle lists {', '.join(bundle.manifest.backends)}; here: "
            f"{'; '.join(reason for _, reason in available().values())}), expected one; install one that the bundle "
            f"lists, or rebuild it with --backends {' '.join(BACKENDS)}"
        )
    for name in GPU_BACKENDS:
        if name in usable and gpu_choice.auto_precision(bundle, name, precision) is not None:
            return name
    usable = [name for name in usable if name not in GPU_BACKENDS] or usable
    if native.NAME in usable and native.auto_precision(bundle, precision, processor) is not None:
        return native.NAME
    return next((name for name in usable if name != native.NAME), native.NAME)


def _auto_precision(bundle: Bundle, backend: str, processor: Processor) -> str:
    if backend == native.NAME:
        return native.default_precision(bundle)
    if backend in GPU_BACKENDS:
        return gpu_choice.PRECISION
    return "bf16" if backend == "openvino" and processor.amx_bf16 else "f32"


def _check_backend(bundle: Bundle, backend: str) -> str:
    """The name again, when the bundle lists it and it is installed."""
    if backend not in bundle.manifest.backends:
        raise BackendError(
            f"{bundle.path}: found backend {backend!r}, expected one that the bundle lists: "
            f"{', '.join(bundle.manifest.backends)}; choose one, or rebuild the bundle with --backends {backend}"
        )
    installed, reason = _available(backend)
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
