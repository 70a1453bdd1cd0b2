"""The way from `Sampler.sample` to the engine's C call: how many frames of ours lie between."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Sampler
from engine.kernels.native_library import NativeLibrary
from tests.native_models import NEEDS_NATIVE

ROOT = Path(__file__).parents[2]
AT_MOST = 5


@NEEDS_NATIVE
def test_an_unwatched_native_run_is_a_few_frames_deep(
    native_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    run = NativeLibrary.run_steps

    def look(self: NativeLibrary, *arguments: Any) -> int:
        frames, frame = [], sys._getframe(1)
        while frame is not None and frame.f_code is not Sampler.sample.__code__:
            frames.append(frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name)
            frame = frame.f_back
        assert frame is not None, "the call came from Sampler.sample"
        seen.append(["NativeLibrary.run_steps", *frames])
        return run(self, *arguments)

    with Sampler(native_bundle("form1"), "native", "bf16", threads=1) as sampler:
        monkeypatch.setattr(NativeLibrary, "run_steps", look)
        sampler.sample(2, seed=0, steps=3, spacing="linspace")
    assert len(seen) == 1, "one call for the whole chain"
    assert len(seen[0]) <= AT_MOST, seen[0]
