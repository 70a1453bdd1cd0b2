"""Plans of TensorRT for RTX: `engines` with the module `tensorrt_rtx`. An `EngineBuilder`."""

from __future__ import annotations

from functools import partial

from export.tensorrt.engines import PRECISIONS, build_plans, check_request, unfit

__all__ = ["PRECISIONS", "build", "check", "unfit"]

check = partial(check_request, "tensorrt_rtx")
build = partial(build_plans, "tensorrt_rtx")
