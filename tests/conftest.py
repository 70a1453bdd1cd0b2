"""Which fixtures do all tests share?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """golden_bundle(name): the bundle of a golden model, built once per session."""

    @functools.cache
    def build(name: str) -> Path:
        from tests.golden_models import build_golden

        return build_golden(name, tmp_path_factory.mktemp(name))

    return build
