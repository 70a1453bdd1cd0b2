"""Fixtures that all tests share."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.kernels import native_library
from engine.kernels.native_library import NativeLibrary
from tests.kept import copy_of_kept


def pytest_configure() -> None:
    """Tests run as a shell's background job ignore Ctrl-C, and so would every process that they start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How long the table of tests/field/ is, so that a run says it."""
    cases = {
        outcome: sum(report.nodeid.startswith("tests/field/") for report in terminalreporter.stats.get(outcome, ()))
        for outcome in ("passed", "failed", "error", "skipped")
    }
    if any(cases.values()):
        words = ", ".join(f"{count} {outcome}" for outcome, count in cases.items() if count)
        terminalreporter.write_line(f"field cases: {sum(cases.values())} ({words})")


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """golden_bundle(name): the bundle of a golden model, built once for all sessions (tests/kept.py)."""

    @functools.cache
    def get(name: str) -> Path:
        def build(folder: Path) -> None:
            from tests.golden_models import build_golden

            build_golden(name, folder)

        return copy_of_kept(name, build, tmp_path_factory.mktemp(name)) / f"{name}.bundle"

    return get


@pytest.fixture(scope="session")
def native_bundle(golden_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """native_bundle(name, *precisions): a golden model's bundle with native engines, built once for all sessions."""

    @functools.cache
    def get(name: str, *precisions: str) -> Path:
        def build(folder: Path) -> None:
            import torch

            from export.native import trajectory as native_trajectory
            from tests.native_models import build_native

            torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one
            with pytest.MonkeyPatch.context() as patch:  # few states: what is tested is not the choice of layers
                patch.setattr(native_trajectory, "STATES", 4)
                patch.setattr(native_trajectory, "LANES", 1)
                build_native(golden_bundle(name), name, folder, asked, "all")

        asked = precisions or ("bf16",)
        kept = "_".join(("native", name, *asked))
        return copy_of_kept(kept, build, tmp_path_factory.mktemp(f"native_{name}")) / f"{name}.bundle"

    return get


@pytest.fixture(scope="session")
def software_tiles(tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """The compiled library with software in place of the tile instructions."""
    from tests.kernel_build import build
    from tests.native_models import SOFTWARE_TILES_FLAGS

    return NativeLibrary(build.compile_library(tmp_path_factory.mktemp("tiles") / build.LIBRARY, *SOFTWARE_TILES_FLAGS))


@pytest.fixture
def force_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """force_isa(path): native graphs loaded from now on run on one of PATHS; the instruction set, or the test is skipped."""

    def force(path: str) -> str:
        from engine.backends.native.isa import VARIABLE
        from tests.native_models import SOFTWARE_TILES

        isa = "amx" if path == SOFTWARE_TILES else path
        if path == SOFTWARE_TILES and native_library.native_library().supports("avx512_bf16")[0]:
            library = request.getfixturevalue("software_tiles")
            monkeypatch.setattr(native_library, "native_library", lambda: library)
        there, why = native_library.native_library().supports(isa)
        if not there:
            pytest.skip(f"this machine does not run {path}: {why}")
        monkeypatch.setenv(VARIABLE, isa)
        return isa

    return force
