"""How are the kernels compiled? One shared library without Python's API, by whatever C++ compiler is there.

setup.py loads this file by path (the package itself needs numpy and the library) and passes extensions() and
commands() to setuptools. `python kernels/build.py` compiles into this folder alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
VARIABLE = "DIFFUSEVAE_KERNELS"
SOURCE = "kernels/cpu/kernels.cpp"
LIBRARY = "_kernels.so"

# No fast-math: results are the same bits everywhere. The two -fno- flags change no result and let loops vectorise.
FLAGS = (
    "-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fPIC", "-shared", "-fvisibility=hidden", "-pthread",
)  # fmt: skip


class KernelBuildError(CompileError):
    """The kernels could not be compiled; the message says what to install or to set."""


def find_compiler() -> list[str]:
    """The command of the first C++ compiler found: $CXX, c++, g++, clang++."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise KernelBuildError(
                f"CXX is {os.environ['CXX']!r}, but there is no program {chosen[0]!r}: expected a C++17 compiler. "
                f"Correct or unset CXX, or set {VARIABLE}=numpy, here and when running, for the slower numpy kernels."
            )
        return chosen
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise KernelBuildError(
        "No C++ compiler was found (looked for $CXX, c++, g++, clang++), and the kernels need one. Install g++ 9 or newer "
        f"(`apt install g++`, `dnf install gcc-c++`, `xcode-select --install`) or set {VARIABLE}=numpy, here "
        "and when running, for the slower numpy kernels."
    )


def command(compiler: list[str], output: Path, *extra: str) -> list[str]:
    """The compiler's command line; `extra` flags come last and win."""
    return [*compiler, *FLAGS, f"-I{HERE / 'include'}", str(HERE / "cpu" / "kernels.cpp"), "-o", str(output), *extra]


def compile_library(output: Path, *extra: str) -> Path:
    """Compiles the library to `output`, replacing it in one move, so that a loaded one stays valid."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        built = Path(folder) / output.name
        line = command(find_compiler(), built, *extra)
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise KernelBuildError(
                f"The kernels did not compile: `{shlex.join(line)}` ended with {done.returncode}.\n{done.stderr.strip()}\n"
                f"Expected a C++17 compiler such as g++ 9 or newer: name one in CXX, or set {VARIABLE}=numpy, here and "
                "when running, for the slower numpy kernels."
            )
        os.replace(built, output)
    return output


class BuildKernels(build_ext):
    """build_ext that calls the C++ compiler itself: the library is loaded by ctypes and bound to no Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        compile_library(Path(self.get_ext_fullpath(ext.name)))


class KernelWheel(bdist_wheel):
    """A wheel for this platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


def extensions() -> list[Extension]:
    """What setup(ext_modules=) takes: nothing where DIFFUSEVAE_KERNELS=numpy, the library otherwise."""
    if os.environ.get(VARIABLE) == "numpy":
        return []
    headers = sorted(str(path.relative_to(HERE.parent)) for path in (HERE / "include").rglob("*.h"))
    return [Extension("kernels._kernels", sources=[SOURCE], depends=headers, language="c++")]


def commands() -> dict[str, type]:
    """What setup(cmdclass=) takes."""
    return {"build_ext": BuildKernels, "bdist_wheel": KernelWheel}


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{compile_library(HERE / LIBRARY)}\n")
    except KernelBuildError as error:
        sys.exit(f"error: {error}")
