"""Environments for the packaging tests: an sdist and a wheel of this checkout, installed out of the checkout's sight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SOURCE = (".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "*.so", "*.fatbin")
BUILT = ("out", "build", "dist", "data", "runs")  # folders at the root
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
# Unoptimised kernels give the same bits and compile in a fraction of the time.
FAST_COMPILER = '#!/bin/bash\nexec c++ "${@/-O3/-O0}"\n'


def run(*words: object, cwd: Path, env: dict[str, str] | None = None, status: int = 0) -> str:
    """The output of a command that must end with `status`, run without this checkout on its path."""
    hidden = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DIFFUSEVAE_KERNELS")}
    line = [str(word) for word in words]
    done = subprocess.run(line, cwd=cwd, env=hidden | (env or {}), capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{line} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def copy_of_the_checkout(folder: Path) -> Path:
    """The checkout's sources in another place, so that building leaves nothing behind in it."""

    def skipped(where: str, names: list[str]) -> set[str]:
        found = shutil.ignore_patterns(*NOT_SOURCE)(where, names)
        return found | set(BUILT).intersection(names) if Path(where) == ROOT else found

    return Path(shutil.copytree(ROOT, folder / "checkout", ignore=skipped))


def build_sdist(checkout: Path, folder: Path) -> Path:
    """What `python -m build --sdist` makes, by the same backend."""
    folder.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=checkout)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def build_wheel(source: Path, folder: Path) -> Path:
    """What `pip wheel` makes of an sdist or a folder, with the setuptools that is here."""
    folder.mkdir()
    compiler = folder / "fast-c++"
    compiler.write_text(FAST_COMPILER)
    compiler.chmod(0o755)
    where = ["--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    run(*PIP, "wheel", *where, source, cwd=folder, env={"CXX": str(compiler)})
    (wheel,) = folder.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Environment:
    """A virtual environment: nothing but what is installed into it, and the dependencies if it may see ours."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        venv.create(folder, with_pip=False)
        return cls(folder)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def install(self, wheel: Path) -> None:
        """pip install --no-deps."""
        run(*PIP, "--python", self.python, "install", "--no-deps", "--no-index", wheel, cwd=self.folder)

    def borrow_dependencies(self) -> None:
        """Let it import numpy, torch and the rest from here. The editable installation stays out: its .pth is not read."""
        (self.site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def call(self, *words: object, cwd: Path, status: int = 0) -> str:
        """Run one of the environment's programs, with its bin folder on the PATH as after `activate`."""
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return run(self.python.parent / str(words[0]), *words[1:], cwd=cwd, env={"PATH": path}, status=status)
