"""Refusals that only HTTP knows, and the status and JSON of every error of the engine's."""

from __future__ import annotations

import json
from collections.abc import Mapping

from engine.errors import ArgumentError, Cancelled, DeadlineError, EngineError, HostMemoryError

LONGEST = 2000  # characters of a message: it may quote what a client sent
CLIENT_GONE = 499  # as nginx logs it: a status that is never read
STATUS: tuple[tuple[type[EngineError], int], ...] = (
    (ArgumentError, 400), (Cancelled, CLIENT_GONE), (DeadlineError, 503), (HostMemoryError, 503),
)  # fmt: skip


class Refusal(EngineError):
    """A request that is answered with this status, without a run."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def status_of(error: EngineError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Refusal):
        return error.status
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def error_body(error: EngineError) -> bytes:
    """{"error": {"kind": "ArgumentError", "message": "what was found, what was expected, what to do"}}."""
    text = str(error)
    message = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text)} characters)"
    return json.dumps({"error": {"kind": type(error).__name__, "message": message}}).encode()
