"""Fixtures that the unit tests share."""

from __future__ import annotations

import pytest

from tests.kernel_choice import use


@pytest.fixture(params=["compiled", "numpy"])
def each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test on both implementations through the public functions."""
    use(monkeypatch, request.param)
