"""Which backends need engines built for them? One module for each, one line in ENGINE_BUILDERS, imported when asked for."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, cast

from engine.errors import BackendError

if TYPE_CHECKING:
    from export.engines.base import EngineBuilder

ENGINE_BUILDERS = {  # backend -> module, which has PRECISIONS and build(context, precision, options)
    "native": "export.engines.native",
    "tensorrt_rtx": "export.engines.tensorrt_rtx",
    "tensorrt": "export.engines.tensorrt",
}


def load_builder(backend: str) -> EngineBuilder:
    """The builder of a backend; BackendError when something that it needs is not installed."""
    name = ENGINE_BUILDERS[backend]
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {backend}: found no module {error.name}, expected what building its engines needs; install it, or "
            f"leave {backend} out of --backends"
        ) from error
    return cast("EngineBuilder", module)
