"""The date that records of fits and benchmarks bear."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> str:
    """The date and time in UTC, to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
