"""The build of the kernels: one shared library without Python's API, by whatever C++ compiler is there.

setup.py loads this file by path (the package itself needs numpy and the library) and passes extensions() and
commands() to setuptools. `python kernels/build.py` compiles into engine/kernels alone.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "engine" / "kernels"  # what loads the library
VARIABLE = "DIFFUSEVAE_KERNELS"
LIBRARY = "_kernels.so"

# No fast-math: results are the same bits everywhere. The two -fno- flags change no result and let loops vectorise.
FLAGS = (
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-shared", "-pthread",
)  # fmt: skip


_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma")

# The library is for any x86-64; these files alone are compiled for more, and run only where the processor has it. Each for
# exactly its instructions: with a -march=native in CXX, `avx2` would not run on another machine.
TARGET_FLAGS = {
    "target_avx2.cpp": ("-mavx2", "-mfma", "-mf16c", "-mno-avx512f"),
    "target_avx512.cpp": (*_AVX512, "-mno-avx512bf16"),
    "target_avx512_bf16.cpp": (*_AVX512, "-mavx512bf16"),
    "target_amx.cpp": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}


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
        "No C++ compiler was found (looked for $CXX, c++, g++, clang++), and the kernels need one. Install g++ 12 or newer "
        f"(`apt install g++`, `dnf install gcc-c++`, `xcode-select --install`) or set {VARIABLE}=numpy, here "
        "and when running, for the slower numpy kernels."
    )


def _load_cuda_build() -> ModuleType:
    """build_cuda.py, by path: importing the package would need numpy and the library that is about to be built."""
    spec = importlib.util.spec_from_file_location("kernel_build_cuda", PACKAGE / "build_cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda = _load_cuda_build()
CUDA_EXTENSION = "engine.kernels._cuda"


def sources(machine: str | None = None) -> list[Path]:
    """Every C++ file of the library on this machine (platform.machine()); the targets are for x86-64."""
    x86 = (machine or platform.machine()) in ("x86_64", "AMD64")
    native = sorted((HERE / "native").glob("*.cpp"))
    return [HERE / "cpu" / "kernels.cpp", *(path for path in native if x86 or path.name not in TARGET_FLAGS)]


def commands_for(compiler: list[str], folder: Path, *extra: str) -> dict[Path, list[str]]:
    """The command that compiles each source, by its object; `extra` flags win, but for a target's instructions."""
    made = {}
    for source in sources():
        output = folder / f"{source.stem}.o"
        flags = [flag for flag in FLAGS if flag != "-shared"]
        own = TARGET_FLAGS.get(source.name, ())
        made[output] = [*compiler, *flags, *extra, *own, f"-I{HERE / 'include'}", "-c", str(source), "-o", str(output)]
    return made


def run(line: list[str]) -> None:
    """Run one command of the compiler; KernelBuildError with all that it said when it fails."""
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KernelBuildError(
            f"The kernels did not compile: `{shlex.join(line)}` ended with {done.returncode}.\n{done.stderr.strip()}\n"
            f"Expected a C++17 compiler such as g++ 12 or newer: name one in CXX, or set {VARIABLE}=numpy, here and "
            "when running, for the slower numpy kernels."
        )


def run_all(lines: list[list[str]]) -> None:
    """Run commands that do not wait for each other, as many at a time as there are processors."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(run, lines))


def compile_library(output: Path, *extra: str) -> Path:
    """Compiles the library to `output`, replacing it in one move, so that a loaded one stays valid."""
    compiler = find_compiler()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as name:
        folder = Path(name)
        built = folder / output.name
        objects = commands_for(compiler, folder, *extra)
        run_all(list(objects.values()))
        run([*compiler, *FLAGS, *map(str, objects), "-o", str(built), *extra])
        os.replace(built, output)
    return output


class BuildKernels(build_ext):
    """build_ext that calls the compilers itself: the library is loaded by ctypes and bound to no Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        path = os.path.join(*fullname.split("."))  # of the full name, or of its last part alone
        return path + (".fatbin" if CUDA_EXTENSION.endswith(fullname) else ".so")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        if ext.name != CUDA_EXTENSION:
            compile_library(output)
            return
        try:
            cuda.compile_fatbin(output)
        except cuda.CudaBuildError as error:
            raise KernelBuildError(str(error)) from error


class KernelWheel(bdist_wheel):
    """A wheel for this platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


def extensions() -> list[Extension]:
    """What setup(ext_modules=) takes: nothing where DIFFUSEVAE_KERNELS=numpy, else the library, and a fatbin given nvcc."""
    if os.environ.get(VARIABLE) == "numpy":
        return []
    headers = sorted([*(HERE / "include").rglob("*.h"), *(HERE / "native").glob("*.h")])
    names = [[str(path.relative_to(HERE.parent)) for path in paths] for paths in (sources(), headers)]
    library = Extension("engine.kernels._kernels", sources=names[0], depends=names[1], language="c++")
    try:
        nvcc = cuda.find_nvcc()
    except cuda.CudaBuildError as error:
        raise KernelBuildError(str(error)) from error
    if nvcc is None:
        return [library]
    source, *others = (f"kernels/{name}" for name in cuda.SOURCES)
    return [library, Extension(CUDA_EXTENSION, sources=[source], depends=others, language="c++")]


def commands() -> dict[str, type]:
    """What setup(cmdclass=) takes."""
    return {"build_ext": BuildKernels, "bdist_wheel": KernelWheel}


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{compile_library(PACKAGE / LIBRARY)}\n")
    except KernelBuildError as error:
        sys.exit(f"error: {error}")
