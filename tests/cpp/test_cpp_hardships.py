"""The C++ library under damaged bundles, cancelling, threads and misuse, also with the sanitizers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from tests.cpp import building, bundles
from tests.cpp.changed import changed_bundle
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.fixture(scope="module")
def damaged(native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.damaged(native_bundle("form1"), tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="module")
def fitted(native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with settings for budgets of time."""
    path = changed_bundle(native_bundle("form1"), tmp_path_factory.mktemp("fitted") / "fitted.bundle", {})
    write_fitted(path, [as_defaults({"timesteps": chain}) for chain in ([400, 150, 25], [400, 25])], {})
    return path


def survive(program: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> int:
    """How many checks a run of hardships.cpp made."""
    found = re.fullmatch(r"(\d+) checks\n", building.run([program, *arguments], env=env))
    assert found is not None
    return int(found[1])


def test_hardships(cpp_programs: Path, fitted: Path, damaged: Path) -> None:
    assert survive(cpp_programs / "hardships", fitted, damaged) > 180


def test_hardships_are_clean_under_the_sanitizers(cpp_sanitized: Path, fitted: Path, damaged: Path) -> None:
    assert survive(cpp_sanitized / "hardships", fitted, damaged, env=SANITIZERS) > 180


@pytest.mark.parametrize("name", ["form1", "uncond"])
def test_the_example_is_clean_under_the_sanitizers_and_makes_the_same_images(
    name: str, cpp_sanitized: Path, cpp_programs: Path, native_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = [native_bundle(name), tmp_path / "sanitized.ppm", "2"]
    building.run([cpp_sanitized / "examples" / "sample", *arguments], env=SANITIZERS)
    building.run([cpp_programs / "examples" / "sample", native_bundle(name), tmp_path / "plain.ppm", "2"])
    assert (tmp_path / "sanitized.ppm").read_bytes() == (tmp_path / "plain.ppm").read_bytes()


def test_the_sanitizers_are_in_the_build(cpp_sanitized: Path) -> None:
    """A clean run of a build without them would say nothing."""
    library = cpp_sanitized / "diffusevae" / building.LIBRARY
    listed = building.run(["nm", "-D", "--undefined-only", library])
    assert "__asan_report_load8" in listed
    assert "__ubsan_handle" in listed
