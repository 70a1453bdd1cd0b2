"""kernels/build.py, loaded by path: the folder of the kernels' sources is no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("kernel_build", Path(__file__).parents[1] / "kernels" / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
