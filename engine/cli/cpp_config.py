"""`diffusevae cpp-config`: where this installation has the C++ library, for the command line of cmake."""

from __future__ import annotations

from pathlib import Path

import click

from engine.commands import reinstall
from engine.errors import EngineError

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGED = PACKAGE / "_sources"  # what a wheel carries; a checkout has the same folders beside the package
FOLDER = (PACKAGED if PACKAGED.is_dir() else PACKAGE.parent) / "embed" / "cpp"
CMAKE_FILE = Path("cmake") / "diffusevaeConfig.cmake"
HEADER = Path("include") / "diffusevae.h"


class CppFilesError(EngineError):
    """The files of the C++ library are not where this package has them."""


def cmake_dir() -> Path:
    """The folder for find_package(diffusevae): as diffusevae_DIR, or in CMAKE_PREFIX_PATH."""
    return _existing(CMAKE_FILE).parent


def include_dir() -> Path:
    """The folder of diffusevae.h and diffusevae.hpp, for build systems other than cmake."""
    return _existing(HEADER).parent


def _existing(file: Path) -> Path:
    path = FOLDER / file
    if not path.is_file():
        raise CppFilesError(
            f"{path}: found no such file, expected it as part of the package diffusevae-engine; install it "
            f"again with: {reinstall()}"
        )
    return path


@click.command("cpp-config")
@click.option("--cmake-dir", "what", flag_value="cmake", default=True, help="The folder of the CMake files (the default).")
@click.option("--include-dir", "what", flag_value="include", help="The folder of diffusevae.h and diffusevae.hpp.")
def cpp_config(what: str) -> None:
    """Print where the C++ library is, for find_package(diffusevae CONFIG REQUIRED):

    cmake -S . -B build -Ddiffusevae_DIR=$(diffusevae cpp-config)
    """
    click.echo(cmake_dir() if what == "cmake" else include_dir())
