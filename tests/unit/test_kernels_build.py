"""The kernel library: it compiles, loads, gives the same bits however it was compiled, and says so where it cannot."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from setuptools import Distribution

from engine.kernels import ROW_FIELDS, KernelLoadError, fallback, loader
from engine.kernels.operands import FULL, INDEX, PUSH_X0, Operands
from tests.kernel_build import build

ROOT = Path(__file__).resolve().parents[2]


def compiler_or_skip() -> list[str]:
    try:
        return build.find_compiler()
    except build.KernelBuildError:
        pytest.skip("no C++ compiler on this machine")


@pytest.fixture(scope="module")
def distribution() -> Iterator[Distribution]:
    """What setup.py declares, without the fatbin (test_cuda_build.py)."""
    compiler_or_skip()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(build.VARIABLE, raising=False)
        patch.setenv("DIFFUSEVAE_NVCC", "none")
        patch.chdir(ROOT)
        yield Distribution({"name": "test", "ext_modules": build.extensions(), "cmdclass": build.commands()})


@pytest.fixture(scope="module")
def built(distribution, tmp_path_factory) -> Path:
    """The library as setuptools builds it."""
    folder = tmp_path_factory.mktemp("setuptools")
    command = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "temp")
    command.ensure_finalized()
    command.run()
    return folder / "lib" / "engine" / "kernels" / "_kernels.so"


@pytest.fixture(scope="module")
def installed(built) -> loader.CompiledKernels:
    return loader.CompiledKernels(built)


def cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != loader.VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=60
    )


# Bits


def every_result(kernels: loader.Kernels) -> list[np.ndarray]:
    """Outputs of all kernels over awkward sizes."""
    rng = np.random.default_rng(3)
    full = rng.uniform(-1, 1, len(ROW_FIELDS)).astype(np.float32)
    full[INDEX["clip"]], full[INDEX["push"]] = 1.0, PUSH_X0
    plain = full.copy()
    plain[list(FULL)] = 0
    seeds = np.array([1, 2**63, 2**64 - 1], np.uint64)
    results: list[np.ndarray] = []
    for count in (1, 5, 16, 513, 4099):
        x, c, y, h1, h2, h3, g, v = (rng.standard_normal((3, count), np.float32) * 100 for _ in range(8))
        e, weights = rng.standard_normal((6, count), np.float32), np.array([1.7, -0.7], np.float32)
        noise = np.empty_like(x)
        for row, more, set_ in ((plain, (None,) * 6, ()), (full, (y, h1, h2, h3, g, v), ("y_out",))):
            got = {name: np.zeros_like(x) for name in ("out", "x0_out", "push_out", *set_)}
            others = {"noise": None, "seeds": seeds, "step": 4, "threads": 1, "y_out": None}
            kernels.update(Operands(row, x, e, weights, c, *more, **(others | got)))
            results += [array.view(np.uint32) for array in got.values()]
        kernels.normal(seeds, 1, 0, count, noise)
        results.append(noise.view(np.uint32))
    image = rng.standard_normal((2, 3, 33, 31), np.float32)
    pixels = np.empty((2, 33, 31, 3), np.uint8)
    kernels.to_uint8(image, pixels)
    return [*results, pixels]


@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        (("-DDV_NO_CLONES",), ""),
        (("-DDV_NO_CLONES", "-mavx2", "-mfma"), "avx2"),
        (("-DDV_NO_CLONES", "-mavx512f"), "avx512f"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, tuple) else value,
)
def test_every_instruction_set_gives_the_bits_of_numpy(tmp_path, monkeypatch, flags, needs):
    compiler_or_skip()
    only = [ROOT / "kernels" / "cpu" / "kernels.cpp"]  # the native engine is compiled for its instructions in any case
    monkeypatch.setattr(build, "sources", lambda: only)
    if needs and needs not in cpu_flags():
        pytest.skip(f"this processor has no {needs}")
    compiled = loader.CompiledKernels(build.compile_library(tmp_path / "_kernels.so", *flags))
    for got, want in zip(every_result(compiled), every_result(fallback.NumpyKernels("test")), strict=True):
        assert np.array_equal(got, want)


def test_the_library_as_installed_gives_the_bits_of_numpy(installed):
    for got, want in zip(every_result(installed), every_result(fallback.NumpyKernels("test")), strict=True):
        assert np.array_equal(got, want)


def test_kernels_are_clean_under_the_address_and_undefined_behaviour_sanitizers(tmp_path):
    compiler = compiler_or_skip()
    flags = [flag for flag in build.FLAGS if flag not in ("-shared", "-O3")]
    sanitize = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DDV_NO_CLONES"]
    driver, program = Path(__file__).with_name("sanitize_kernels.cpp"), tmp_path / "sanitize"
    sources = [f"-I{ROOT}/kernels/include", str(driver), f"{ROOT}/kernels/cpu/kernels.cpp", "-o", str(program)]
    built = subprocess.run([*compiler, *flags, *sanitize, *sources], capture_output=True, text=True, timeout=120)
    if "libasan" in built.stderr or "libubsan" in built.stderr:
        pytest.skip("the compiler has no sanitizer libraries on this machine")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "clean\n", "")


CUDA_SOURCE = """
#include "diffusevae/row.h"
__global__ void step(diffusevae::Row row, float w, float* x, const float* e, uint64_t seed, uint8_t* image, int n) {
    const int block = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (4 * block + 3 >= n) return;
    const diffusevae::Normals z = diffusevae::normal4(seed, diffusevae::kStreamStep, 1u, uint64_t(block));
    const float noise[4] = {z.v0, z.v1, z.v2, z.v3};
    for (int j = 0, i = 4 * block; j < 4; ++j, ++i) {
        const float sum = diffusevae::combine(&w, 1, [&](int32_t) { return e[i]; });
        const diffusevae::Values values{x[i], sum, 0.0f, noise[j], 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        const float full = diffusevae::step_full(row, values).x;
        x[i] = diffusevae::is_full(row) ? full : diffusevae::step_plain(row, x[i], sum, 0.0f, noise[j]).x;
        image[i] = diffusevae::to_uint8(x[i]);
    }
}
float on_the_host(float x) { return diffusevae::limit(x, 1.0f); }
"""


def test_headers_compile_for_cuda(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    source = tmp_path / "headers.cu"
    source.write_text(CUDA_SOURCE)
    line = [nvcc, "-c", "-std=c++17", "--fmad=false", "-arch=sm_80", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*line, f"-I{ROOT}/kernels/include", str(source), "-o", str(tmp_path / "headers.o")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# Building


def test_no_compiler_is_one_sentence_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    cure = r"No C\+\+ compiler was found .*apt install g\+\+.*DIFFUSEVAE_KERNELS=numpy"
    with pytest.raises(build.KernelBuildError, match=cure):
        build.find_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(build.KernelBuildError, match=r"no program 'no-such-compiler'.*Correct or unset CXX"):
        build.find_compiler()


def test_a_failing_compiler_is_quoted_and_leaves_the_old_library(monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'cannot find <cmath>' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    old = tmp_path / "lib" / "_kernels.so"
    old.parent.mkdir()
    old.write_text("old")
    with pytest.raises(build.KernelBuildError, match=r"(?s)ended with 3.*cannot find <cmath>.*g\+\+ 12 or newer"):
        build.compile_library(old)
    assert [path.name for path in old.parent.iterdir()] == ["_kernels.so"]
    assert old.read_text() == "old"


def test_setuptools_builds_one_library_bound_to_no_python_version(distribution, built, installed):
    assert installed.describe()["path"] == str(built)
    wheel = distribution.get_command_obj("bdist_wheel")
    wheel.ensure_finalized()
    assert wheel.get_tag()[:2] == ("py3", "none")
    assert wheel.get_tag()[2] != "any"
    sources = set(distribution.get_command_obj("build_ext").get_source_files())
    expected = [*build.sources(), *(ROOT / "kernels/include").rglob("*.h"), *(ROOT / "kernels/native").glob("*.h")]
    assert {str(path.relative_to(ROOT)) for path in expected} <= sources


def test_the_variable_installs_without_a_compiler(monkeypatch):
    monkeypatch.setenv(build.VARIABLE, "numpy")
    assert build.extensions() == []


# Loading


def test_a_missing_library_says_how_to_get_it(tmp_path):
    cure = r"are missing: .*_kernels\.so does not exist.*pip install.*DIFFUSEVAE_KERNELS=numpy"
    with pytest.raises(KernelLoadError, match=cure):
        loader.CompiledKernels(tmp_path / "_kernels.so")


@pytest.mark.parametrize("content", [b"", b"x", b"not a library", b"\x7fELF" + b"\0" * 60])
def test_a_damaged_library_is_refused(tmp_path, content):
    path = tmp_path / "_kernels.so"
    path.write_bytes(content)
    with pytest.raises(KernelLoadError, match="is not a kernel library that this machine can load"):
        loader.CompiledKernels(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('extern "C" int dv_abi_version(void) { return 99; }', "has interface version 99, expected 4. Run `pip install"),
        ('extern "C" int something(void) { return 1; }', "is not a kernel library"),
    ],
)
def test_another_library_is_refused(tmp_path, source, message):
    compiler = compiler_or_skip()
    (tmp_path / "other.cpp").write_text(source)
    path = tmp_path / "_kernels.so"
    subprocess.run([*compiler, "-shared", "-fPIC", str(tmp_path / "other.cpp"), "-o", str(path)], check=True, timeout=60)
    with pytest.raises(KernelLoadError, match=message):
        loader.CompiledKernels(path)


def test_loader_and_header_agree_on_the_interface_version():
    header = (ROOT / "kernels/include/diffusevae/kernels.h").read_text()
    assert f"#define DV_ABI_VERSION {loader.ABI_VERSION}\n" in header


def test_the_variable_chooses_and_an_unknown_value_is_refused(monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, "numpy")
    assert loader.load().describe() == {"name": "numpy", "isa": "numpy", "reason": "DIFFUSEVAE_KERNELS=numpy"}
    monkeypatch.setenv(loader.VARIABLE, "nunpy")
    with pytest.raises(KernelLoadError, match=r"is 'nunpy'; expected one of compiled, numpy.* Did you mean 'numpy'"):
        loader.load()


def test_a_fresh_interpreter_takes_numpy_when_told_to():
    code = (
        "import numpy as np\nfrom engine import kernels\n"
        "print(kernels.implementation()['name'], kernels.to_uint8(np.zeros((1, 1, 1, 1), 'f4'))[0])"
    )
    done = run_python(code, DIFFUSEVAE_KERNELS="numpy")
    assert (done.returncode, done.stdout) == (0, "numpy [[[128]]]\n"), done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86-64 only")
def test_the_library_names_an_instruction_set_that_the_processor_has(installed):
    assert installed.describe()["isa"] in ({"avx512f", "avx2"} & cpu_flags()) | {"x86-64"}
