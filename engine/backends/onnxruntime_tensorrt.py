"""How does ONNX Runtime run a graph through TensorRT? Its TensorRT provider builds an engine when the graph is loaded.

The CUDA provider stands behind it for what TensorRT does not take. The bundle's own plans (backend tensorrt) load in a
fraction of the time; this one is for machines that have onnxruntime-gpu already.
"""

from __future__ import annotations

from engine.backends.onnxruntime import OrtGraph, Runtime, load_on
from engine.backends.onnxruntime_gpu import installed
from engine.bundle.reader import Bundle

NAME = "onnxruntime-tensorrt"
PRECISIONS = ("f32", "fp16")
RUNTIME = Runtime(
    NAME,
    {"TensorrtExecutionProvider": {}, "CUDAExecutionProvider": {"use_tf32": "0"}},
    PRECISIONS,
    "pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
)


def load(bundle: Bundle, role: str, *, precision: str = "f32", threads: int | None = None) -> OrtGraph:
    """Load a graph of a verified bundle; BackendError when a provider or the device are missing."""
    return load_on(RUNTIME, bundle, role, precision, threads)


def available() -> tuple[bool, str]:
    """(whether package and driver are there, what is or what to install)."""
    return installed(RUNTIME)
