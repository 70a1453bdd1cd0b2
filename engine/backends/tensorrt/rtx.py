"""Backend `tensorrt_rtx`: TensorRT for RTX, run as TensorRT is, from plans of its own."""

from __future__ import annotations

from engine.backends.tensorrt.backend import TensorRt


class TensorRtRtx(TensorRt):
    """Plans of TensorRT for RTX."""

    NAME = "tensorrt_rtx"
