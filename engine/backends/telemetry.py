"""Imports of runtimes without their reports: sampling needs no home folder, and writes nothing but its results.

Where there is a home folder, onnxruntime and openvino_telemetry each write an identity into it and send what was imported to
their makers; where there is none, the latter fails, and `import openvino` with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH = "ORT_DISABLE_TELEMETRY"  # read by onnxruntime as it is imported
PACKAGE = "openvino_telemetry"  # openvino has a stub where this is missing


@contextmanager
def silenced() -> Iterator[None]:
    """Within it the runtimes find their reports switched off, unless the caller's program has decided about them."""
    modules, environment = PACKAGE not in sys.modules, SWITCH not in os.environ
    if modules:
        sys.modules[PACKAGE] = None  # type: ignore[assignment]
    if environment:
        os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        if modules:
            sys.modules.pop(PACKAGE, None)
        if environment:
            os.environ.pop(SWITCH, None)
