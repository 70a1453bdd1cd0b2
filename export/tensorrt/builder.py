"""How are plans of TensorRT proper built? As `tensorrt_engines` does for both libraries, with the module `tensorrt`."""

from __future__ import annotations

from functools import partial

from export.tensorrt.engines import PRECISIONS, build_plans, check_request

__all__ = ["PRECISIONS", "build", "check"]

check = partial(check_request, "tensorrt")
build = partial(build_plans, "tensorrt")
