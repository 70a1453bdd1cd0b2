"""The C++ wrapper: every option and result handed through, every failure an exception."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from tests.cpp import building
from tests.cpp.changed import changed_bundle
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.mark.parametrize("kind", ["cpp_programs", "cpp_sanitized"])
def test_the_wrapper(
    kind: str, native_bundle: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    program, target = request.getfixturevalue(kind) / "wrapper", tmp_path / "x.f32"
    path = changed_bundle(native_bundle("form1"), tmp_path / "fitted.bundle", {})
    write_fitted(path, [as_defaults({"timesteps": chain}) for chain in ([900, 700, 500, 300, 100, 20], [400, 150, 25])], {})
    found = re.fullmatch(r"(\d+) checks\n", building.run([program, path, target], env=SANITIZERS))
    assert found is not None
    assert int(found[1]) > 35
    with Sampler(native_bundle("form1"), "native", threads=2) as sampler:
        x = sampler.sample(
            3, seed=7, steps=4, method="ddpm", guidance=0.5, temperature=0.75, variance="fixedsmall", clip=False
        ).x
    assert target.read_bytes() == np.ascontiguousarray(x).tobytes()
