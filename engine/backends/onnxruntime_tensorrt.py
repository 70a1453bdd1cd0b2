"""Backend `onnxruntime-tensorrt`: ONNX Runtime's TensorRT provider, which builds an engine when a graph is loaded.

The CUDA provider stands behind it for what TensorRT does not take. The bundle's own plans (backend tensorrt) load in a
fraction of the time; this one is for machines that have onnxruntime-gpu already.
"""

from __future__ import annotations

from engine.backends.onnxruntime import Runtime
from engine.backends.onnxruntime_gpu import OnGpu

NAME = "onnxruntime-tensorrt"
PRECISIONS = ("f32", "fp16")
RUNTIME = Runtime(
    NAME,
    {"TensorrtExecutionProvider": {}, "CUDAExecutionProvider": {"use_tf32": "0"}},
    PRECISIONS,
    "pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
)


class OnnxRuntimeTensorRt(OnGpu):
    """ONNX Runtime on these providers."""

    NAME = NAME
    PRECISIONS = PRECISIONS
    RUNTIME = RUNTIME
