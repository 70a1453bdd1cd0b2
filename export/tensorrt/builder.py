"""Plans of TensorRT proper: `engines` with the module `tensorrt`. An `EngineBuilder`."""

from __future__ import annotations

from functools import partial

from export.tensorrt.engines import PRECISIONS, build_plans, check_request, unfit

__all__ = ["PRECISIONS", "build", "check", "unfit"]

check = partial(check_request, "tensorrt")
build = partial(build_plans, "tensorrt")
