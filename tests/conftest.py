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


@pytest.fixture(scope="session")
def native_bundle(golden_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """native_bundle(name, *precisions): a golden model's bundle with native engines, built once per session."""

    @functools.cache
    def build(name: str, *precisions: str) -> Path:
        import torch

        from export.engines import native_trajectory
        from tests.native_models import build_native

        torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one
        with pytest.MonkeyPatch.context() as patch:  # calibrated on few states: what is tested is not the choice of layers
            patch.setattr(native_trajectory, "STATES", 4)
            patch.setattr(native_trajectory, "LANES", 1)
            golden = golden_bundle(name)
            return build_native(golden, name, tmp_path_factory.mktemp(f"native_{name}"), precisions or ("bf16",), "all")

    return build
