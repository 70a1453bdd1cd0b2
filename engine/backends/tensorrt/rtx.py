"""Backend `tensorrt_rtx`: TensorRT for RTX, from plans of its own."""

from __future__ import annotations

from engine.backends.tensorrt.backend import TensorRt

NAME = "tensorrt_rtx"


class TensorRtRtx(TensorRt):
    """TensorRT for RTX, on one GPU."""

    NAME = NAME
