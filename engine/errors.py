"""The exceptions that can leave this project: one family, each message saying what was found, expected and to be done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EngineError(Exception):
    """Base class: catch this one to catch everything the engine raises on purpose."""


class ArgumentError(EngineError, ValueError):
    """A caller's argument is out of range, of the wrong shape or dtype, or unknown."""


class BundleError(EngineError):
    """A bundle is refused: manifest, version, size, hash or path is not what it must be."""


class CascadeError(BundleError):
    """Bundles are no cascade: a stage does not fit the next, or what a bundle names as the next is missing or another."""


class BackendError(EngineError):
    """A runtime is missing, cannot run here, or failed."""


class DeviceError(BackendError):
    """A GPU or its driver is missing or refused a call; the message has the driver's own text."""


class HostMemoryError(EngineError, MemoryError):
    """The machine, or this process by its limits, has no memory for a request."""


class DeviceMemoryError(DeviceError):
    """The GPU, or the host's pinned memory, has no room for a request."""


class CaptureError(DeviceError):
    """A sequence of calls could not be captured into a CUDA graph; it can still be run call by call."""


class CheckpointError(EngineError):
    """A checkpoint cannot be read, or is not a model that this project knows."""


class ExportError(EngineError):
    """A bundle could not be built, for instance because a graph missed its parity bound."""


class BulkError(EngineError):
    """A bulk job cannot go on: its folder, one of its workers, or the cluster is not what it must be."""


class NumericsError(EngineError, ArithmeticError):
    """A network returned NaN or infinity; the message names graph and step."""


class Cancelled(EngineError):
    """A callback, or `stop`, asked a run to end. step: rows that were done; steps: of how many."""

    def __init__(self, message: str, step: int = 0, steps: int = 0) -> None:
        super().__init__(message)
        self.step, self.steps = step, steps


class DeadlineError(EngineError):
    """No setting keeps the budget of time that a caller gave."""


class SamplerStateError(EngineError, RuntimeError):
    """A Sampler was used while it runs in another thread (or in its own callback), or after close()."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the choice nearest to `word`, or an empty string when none is near."""
    near = difflib.get_close_matches(str(word), list(choices), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of what a library said, cut to 200 characters; the kind of error where it said nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
