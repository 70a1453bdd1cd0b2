"""The files of a Triton server on this machine, and what must stand around it: the wheel nvidia-pytriton carries one.

The wheel's Python backend runs a model in a process of its own, the stub, whose interpreter it finds in two places: the
library through LD_LIBRARY_PATH, the environment through `python3` in PATH (it ignores PYTHONPATH). That environment may be
another than the caller's, and often must be: the wheel wants numpy 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.commands import package_source
from engine.errors import EngineError

PYTHON_VARIABLE = "DIFFUSEVAE_TRITON_PYTHON"
WHEEL = "nvidia-pytriton"
INSTALL = f"pip install --no-deps {WHEEL}==0.7.0 && pip install {package_source()} 'numpy<2'"
STUB = "triton_python_backend_stub"
# What an environment says about itself, in the environment's own Python.
ASK = """
import importlib.util, json, sys, sysconfig
from importlib import metadata
places = {}
for name in ("pytriton", "engine", "numpy"):
    spec = importlib.util.find_spec(name)
    places[name] = spec.origin if spec else None
print(json.dumps({
    "executable": sys.executable,
    "base": sys.base_prefix,
    "version": "%d.%d" % sys.version_info[:2],
    "libraries": sysconfig.get_config_var("LIBDIR") or "/usr/lib",
    "multiarch": sysconfig.get_config_var("MULTIARCH") or "",
    "numpy": metadata.version("numpy") if places["numpy"] else None,
    "places": places,
}))
"""


class ServerError(EngineError):
    """A Triton server is not installed, did not start, or did not answer in time."""


@dataclass(frozen=True)
class Installation:
    """The files of a server: its binary, its Python backend, the stub for its interpreter, and where it looks things up."""

    binary: Path
    backend: Path
    stub: Path
    libraries: tuple[Path, ...]
    executables: Path  # the folder whose python3 the stub becomes

    def environment(self) -> dict[str, str]:
        """This process's environment, with the server's libraries and interpreter in front."""
        environment = dict(os.environ)
        environment.pop("PYTHONHOME", None)
        for name, folders in (("LD_LIBRARY_PATH", self.libraries), ("PATH", (self.executables,))):
            others = [environment[name]] if environment.get(name) else []
            environment[name] = os.pathsep.join([*map(str, folders), *others])
        return environment

    def prepare(self, folder: Path) -> Path:
        """Make a --backend-directory in `folder`: the Python backend and its stub, as links."""
        backends = folder / "backends"
        (backends / "python").mkdir(parents=True)
        for file in (*sorted(self.backend.iterdir()), self.stub):
            (backends / "python" / file.name).symlink_to(file)
        return backends


def find_installation(python: str | os.PathLike[str] | None = None) -> Installation:
    """The server in an environment; ServerError says what is missing and what to install.

    python  an interpreter or a virtual environment's folder. None: what DIFFUSEVAE_TRITON_PYTHON names, else this one
    """
    interpreter = _interpreter(python or os.environ.get(PYTHON_VARIABLE) or sys.executable)
    facts = _ask(interpreter)
    _check_packages(interpreter, facts)
    package = Path(facts["places"]["pytriton"]).parent
    server = package / "tritonserver"
    return Installation(
        binary=_existing(server / "bin" / "tritonserver"),
        backend=_existing(server / "backends" / "python"),
        stub=_stub(server / "python_backend_stubs", facts["version"]),
        libraries=(_existing(package.parent / "nvidia_pytriton.libs"), _libpython_folder(facts)),
        executables=_executables(Path(facts["executable"])),
    )


def _interpreter(place: str | os.PathLike[str]) -> Path:
    """The interpreter itself, where the folder of an environment may be named."""
    path = Path(os.path.abspath(place))
    path = path / "bin" / "python" if path.is_dir() else path
    if not path.is_file():
        raise ServerError(
            f"{path}: found no interpreter, expected the Python of the server's environment; make one with "
            f"{sys.executable} -m venv, or correct {PYTHON_VARIABLE}"
        )
    return path


def _ask(interpreter: Path) -> dict[str, Any]:
    # Isolated: in the current folder or on PYTHONPATH there may be packages that the server will not see.
    try:
        done = subprocess.run([interpreter, "-I", "-c", ASK], capture_output=True, text=True, check=True, timeout=60)
        facts: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, json.JSONDecodeError) as error:
        raise ServerError(
            f"{interpreter}: found that it does not work ({error}), expected a Python 3; make the environment again or name "
            f"another in {PYTHON_VARIABLE}"
        ) from error
    return facts


def _check_packages(interpreter: Path, facts: dict[str, Any]) -> None:
    for name, package in (("pytriton", WHEEL), ("engine", "diffusevae-engine"), ("numpy", "numpy")):
        if facts["places"][name] is None:
            raise ServerError(
                f"{interpreter}: found no package {package}, expected it in the server's environment; there, run {INSTALL}. "
                f"Another environment can be named in {PYTHON_VARIABLE}."
            )
    if int(facts["numpy"].partition(".")[0]) >= 2:
        raise ServerError(
            f"{interpreter}: found numpy {facts['numpy']}, expected numpy 1: the Python backend of {WHEEL} reads arrays of "
            f"numpy 2 wrongly; run pip install 'numpy<2' there, or name another environment in {PYTHON_VARIABLE}"
        )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ServerError(
            f"{path}: found nothing there, expected it as part of {WHEEL}; install the wheel again: "
            f"pip install --force-reinstall --no-deps {WHEEL}==0.7.0"
        )
    return path


def _stub(stubs: Path, version: str) -> Path:
    stub = _existing(stubs) / version / STUB
    if not stub.is_file():
        there = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise ServerError(
            f"found Python {version}, expected one that {WHEEL} has a stub for ({there}); make the environment with one"
        )
    return stub


def _libpython_folder(facts: dict[str, Any]) -> Path:
    """The folder of the interpreter's own libpython: with another one the model's modules fail in strange ways."""
    name = f"libpython{facts['version']}.so.1.0"
    libraries = Path(facts["libraries"])
    folders = (libraries, libraries / facts["multiarch"], Path(facts["base"], "lib"))
    for folder in folders:
        if (folder / name).is_file():
            return folder
    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise ServerError(
        f"found no {name} in {looked}, expected that of {facts['executable']}; install it (Debian: apt-get install "
        f"libpython{facts['version']}), or use a Python that was built with --enable-shared"
    )


def _executables(interpreter: Path) -> Path:
    """The folder of the interpreter, where it must be called python3 too."""
    named = interpreter.with_name("python3")
    if not named.exists() or not named.samefile(interpreter):
        raise ServerError(
            f"{named}: found no link to {interpreter}, expected one, since the server starts the python3 of that folder; "
            f"use a virtual environment: {interpreter} -m venv"
        )
    return named.parent
