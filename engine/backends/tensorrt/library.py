"""The library: `tensorrt_rtx` or `tensorrt` behind one handle, imported late, its version checked, its log kept.

Both libraries have one API; what differs is looked for, not assumed.
"""

from __future__ import annotations

import functools
import importlib
from collections import deque
from typing import Any

from engine.errors import BackendError

INSTALL = {  # library -> what installs it
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
    "tensorrt": "pip install tensorrt",
}
# The first versions with set_device_memory and the 64-bit memory sizes, by which contexts share one activation memory.
OLDEST = {"tensorrt_rtx": (1, 0), "tensorrt": (10, 1)}
KEPT_MESSAGES = 8


def version_of(text: str) -> tuple[int, ...]:
    """1.7.1.116 as numbers; a suffix such as `rc1` ends them."""
    numbers: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def load_library(name: str) -> Any:
    """The module; BackendError when it is missing, does not import, or is too old."""
    try:
        library = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library of the package does not load
        raise BackendError(
            f"backend {name!r}: found that it cannot be imported ({error}), expected the package; install it with: "
            f"{INSTALL[name]}"
        ) from error
    version = str(library.__version__)
    if version_of(version) < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise BackendError(
            f"backend {name!r}: found version {version}, expected {oldest} or newer; upgrade it with: "
            f"{INSTALL[name].replace('install', 'install --upgrade')}, and rebuild the bundle with it"
        )
    return library


@functools.cache
def _logger_class(library: Any) -> type:
    severities = library.ILogger.Severity

    class KeepingLogger(library.ILogger):
        """Keeps the last warnings and errors: a call that fails returns None or False, and says why only here."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=KEPT_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR, severities.WARNING):
                self.messages.append(f"{severity.name}: {message}")

    return KeepingLogger


def new_logger(library: Any) -> Any:
    """A logger of this library with `messages`, the last warnings and errors."""
    return _logger_class(library)()


def said(logger: Any) -> str:
    """The last messages of a logger, for an error's text; taken away, so that the next error has its own."""
    text = " | ".join(logger.messages) or "nothing"
    logger.messages.clear()
    return text
