"""How does ONNX Runtime run a graph on an NVIDIA GPU? Its CUDA provider, in float32 or with the bundle's half graphs.

Arrays travel to the device and back with every call: for whole chains on the device there are the TensorRT backends and
the whole-sampler graph.
"""

from __future__ import annotations

from engine.backends.onnxruntime import OrtGraph, Runtime, load_on
from engine.backends.onnxruntime_gpu import installed
from engine.bundle.reader import Bundle

NAME = "onnxruntime-cuda"
PRECISIONS = ("f32", "fp16")
# TF32 would keep 10 bits of what is asked for as float32.
RUNTIME = Runtime(
    NAME, {"CUDAExecutionProvider": {"use_tf32": "0"}}, PRECISIONS, "pip install 'onnxruntime-gpu[cuda,cudnn]'"
)


def load(bundle: Bundle, role: str, *, precision: str = "f32", threads: int | None = None) -> OrtGraph:
    """Load a graph of a verified bundle; BackendError when provider or device are missing."""
    return load_on(RUNTIME, bundle, role, precision, threads)


def available() -> tuple[bool, str]:
    """(whether package and driver are there, what is or what to install)."""
    return installed(RUNTIME)
