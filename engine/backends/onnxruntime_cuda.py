"""Backend `onnxruntime-cuda`: ONNX Runtime's CUDA provider, in float32 or with the bundle's half graphs.

Arrays travel to the device and back with every call: for whole chains on the device there are the TensorRT backends and
the whole-sampler graph.
"""

from __future__ import annotations

from engine.backends.onnxruntime import Runtime
from engine.backends.onnxruntime_gpu import OnGpu

NAME = "onnxruntime-cuda"
PRECISIONS = ("f32", "fp16")
# TF32 would keep 10 bits of what is asked for as float32.
RUNTIME = Runtime(
    NAME, {"CUDAExecutionProvider": {"use_tf32": "0"}}, PRECISIONS, "pip install 'onnxruntime-gpu[cuda,cudnn]'"
)


class OnnxRuntimeCuda(OnGpu):
    """ONNX Runtime on these providers."""

    NAME = NAME
    PRECISIONS = PRECISIONS
    RUNTIME = RUNTIME
