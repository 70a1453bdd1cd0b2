"""Backend `onnxruntime-tensorrt`: ONNX Runtime's TensorRT provider, which builds an engine when a graph is loaded.

The CUDA provider stands behind it for what TensorRT does not take. The bundle's own plans (backend tensorrt) load in a
fraction of the time; this one is for machines that have onnxruntime-gpu already.
"""

from __future__ import annotations

from engine.backends.onnxruntime import OnnxRuntime, Runtime
from engine.backends.onnxruntime_gpu import installed

NAME = "onnxruntime-tensorrt"
PRECISIONS = ("f32", "fp16")
RUNTIME = Runtime(
    NAME,
    {"TensorrtExecutionProvider": {}, "CUDAExecutionProvider": {"use_tf32": "0"}},
    PRECISIONS,
    "pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
)


class OnnxRuntimeTensorRt(OnnxRuntime):
    """ONNX Runtime on these providers."""

    NAME = NAME
    PRECISIONS = PRECISIONS
    RUNTIME = RUNTIME
    BY_NAME_ONLY = True  # whether the provider works is known only once a session has been tried

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """(whether package and driver are there, what is or what to install)."""
        return installed(RUNTIME)
