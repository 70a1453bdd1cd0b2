"""ONNX Runtime on a GPU: what its providers have in common, and whether one could be reached here."""

from __future__ import annotations

from ctypes.util import find_library
from importlib import metadata

from engine.backends.onnxruntime import OnnxRuntime, Runtime
from engine.forks import CUDA

PACKAGE = "onnxruntime-gpu"


def installed(runtime: Runtime) -> tuple[bool, str]:
    """(whether package and driver are there, what is or what to install); whether they work shows when a graph is loaded."""
    providers = ", ".join(runtime.providers)
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return False, f"not installed; replace the package onnxruntime with: {runtime.install}"
    if not any(find_library(name) for name in ("cuda", "nvcuda")):
        return False, f"installed ({PACKAGE} {version}) on a machine without an NVIDIA driver; install the driver"
    return True, f"{PACKAGE} {version}, {providers}"


class OnGpu(OnnxRuntime):
    """ONNX Runtime on the providers of RUNTIME, which a subclass names."""

    ONE_PROCESS = CUDA
    BY_NAME_ONLY = True  # whether the provider works is known only once a session has been tried

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """(whether package and driver are there, what is or what to install)."""
        return installed(cls.RUNTIME)
