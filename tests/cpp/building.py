"""The C++ side compiled for tests. With cmake and ninja, in a folder that is kept, so that only changes are compiled."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "embed" / "cpp"
PACKAGED = Path("engine", "_sources")  # where a wheel has kernels/ and embed/
PROGRAMS = ROOT / "tests" / "cpp" / "programs"
# Shared by all runs of the tests; DIFFUSEVAE_CPP_BUILD names another.
BUILDS = Path(os.environ.get("DIFFUSEVAE_CPP_BUILD", ROOT / "build" / "cpp"))
LIBRARY = "libdiffusevae.so"
LAUNCHER = f"-DCMAKE_CXX_COMPILER_LAUNCHER={sys.executable};-S;{ROOT / 'tests' / 'compiled_once.py'}"
# cmake and ninja may be those of the interpreter's environment, activated or not.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 600
) -> str:
    """Run a program that must succeed, with `env` added to the environment; what it printed."""
    done = attempt(command, env=env, cwd=cwd, timeout=timeout)
    shown = f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, shown
    return done.stdout


def attempt(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a program that may fail, with `env` added to the environment."""
    merged = {**os.environ, "PATH": PATH, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, env=merged, cwd=cwd, timeout=timeout, check=False)


def need_tools() -> None:
    """Skip the test where the machine cannot compile."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"no {tool} on this machine")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name):
        pytest.skip("no C++ compiler on this machine")


def build(name: str, *options: str, source: Path = SOURCE) -> Path:
    """Configure and compile `source` with cmake's options; the build folder, `name` among the kept ones.

    CMAKE_BUILD_PARALLEL_LEVEL limits the compilers that run at a time, as ever with cmake.
    """
    need_tools()
    folder = BUILDS / name
    folder.mkdir(parents=True, exist_ok=True)
    python = f"-DDIFFUSEVAE_PYTHON={sys.executable}"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second run of the tests waits, and finds it compiled
        said = ["-G", "Ninja", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", python, LAUNCHER]
        run(["cmake", "-S", source, "-B", folder, *said, *options])
        run(["cmake", "--build", folder], timeout=1200)
    return folder


def keep(made: Path, name: str) -> Path:
    """A copy of a folder among the kept ones, where only files that differ are new: what was compiled from it stays so."""
    kept = BUILDS / name
    files = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    for path in [path for path in kept.rglob("*") if path.is_file() and path.relative_to(kept) not in files]:
        path.unlink()
    for file in files:
        if not (kept / file).is_file() or not filecmp.cmp(made / file, kept / file, shallow=False):
            (kept / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / file, kept / file)
    return kept
