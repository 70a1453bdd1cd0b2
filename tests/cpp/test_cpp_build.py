"""The build of the C++ library, and other projects that build on it, from an install tree and from the wheel."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler, __version__
from tests.cpp import building
from tests.kernel_build import build as kernel_build
from tests.native_models import NEEDS_NATIVE

HEADERS = building.SOURCE / "include"
# What the library may need of a system: the C++ runtime and OpenSSL's SHA-256.
SYSTEM = {"libcrypto", "libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "ld-linux-x86-64"}


def symbols(library: Path) -> set[str]:
    """What a library exports."""
    listed = building.run(["nm", "-D", "--defined-only", library])
    return {line.split()[-1] for line in listed.splitlines()}


def read_ppm(path: Path) -> np.ndarray:
    """The pixels of a binary PPM, [H, W, 3]."""
    head, data = re.fullmatch(rb"(P6\n\d+ \d+\n255\n)(.*)", path.read_bytes(), re.DOTALL).groups()  # type: ignore[union-attr]
    width, height = map(int, head.split()[1:3])
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def strip(images: np.ndarray) -> np.ndarray:
    """Images side by side."""
    return np.concatenate(list(images), axis=1)


def images_of(program: Path, bundle: Path, n: int, seed: int, steps: int, *backend: str) -> np.ndarray:
    """What plain.c writes."""
    done = subprocess.run([program, bundle, *map(str, (n, seed, steps)), *backend], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, np.uint8)


# ---- the library -------------------------------------------------------------------------------------


def test_kernels_are_compiled_as_for_python(cpp_build: Path) -> None:
    """Other flags could change bits, or put instructions into files that run everywhere."""
    commands = json.loads((cpp_build / "compile_commands.json").read_text())
    flags = {Path(entry["file"]).name: shlex.split(entry["command"]) for entry in commands}
    python = set(kernel_build.FLAGS) - {"-shared", "-pthread"}  # of the linker; glibc needs no flag for threads
    for source in kernel_build.sources():
        wanted = python | set(kernel_build.TARGET_FLAGS.get(source.name, ()))
        found = {flag for flag in flags[source.name] if flag.startswith(("-m", "-f", "-O", "-std"))}
        assert found == wanted, source.name
    for name, used in flags.items():
        assert "-ffp-contract=off" in used or name in ("sample.cpp", "latency.cpp"), name
        assert not any(flag.startswith(("-march", "-ffast")) for flag in used), name


def test_only_the_c_interface_is_exported(cpp_library: Path) -> None:
    header = (HEADERS / "diffusevae.h").read_text()
    declared = re.findall(r"^DIFFUSEVAE_API [^(;]*?\b(diffusevae_\w+)\(", header, re.MULTILINE)
    assert len(declared) > 10
    assert symbols(cpp_library) == set(declared)


def test_nothing_but_the_system_and_libcrypto_is_linked(cpp_library: Path) -> None:
    listed = building.run(["readelf", "-d", cpp_library])
    needed = {name.split(".so")[0] for name in re.findall(r"NEEDED\D*\[(.*?)\]", listed)}
    assert {"libcrypto"} <= needed <= SYSTEM
    everything = building.run(["ldd", cpp_library])
    assert not re.search(r"python|torch|onnx|openvino|not found", everything)


def test_the_version_is_that_of_the_python_package(cpp_build: Path, cpp_library: Path) -> None:
    assert cpp_library.resolve().name == f"{building.LIBRARY}.{__version__}"
    assert f'"{__version__}"' in (cpp_build / "diffusevaeConfigVersion.cmake").read_text()


@pytest.mark.parametrize(
    ("compiler", "standard", "header"),
    [("c", "c99", "diffusevae.h"), ("c", "c17", "diffusevae.h"), ("c++", "c++17", "diffusevae.h"),
     ("c++", "c++17", "diffusevae.hpp"), ("c++", "c++17", "diffusevae_types.hpp"),
     ("c++", "c++17", "diffusevae_cascade.hpp"), ("c++", "c++20", "diffusevae.hpp")],
)  # fmt: skip
def test_headers_compile_alone_and_without_a_warning(compiler: str, standard: str, header: str, tmp_path: Path) -> None:
    building.need_tools()
    source = tmp_path / ("alone.c" if compiler == "c" else "alone.cpp")
    source.write_text(f"#include <{header}>\n")
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror", "-fsyntax-only"]
    program = "cc" if compiler == "c" else "c++"
    building.run([program, f"-std={standard}", *strict, "-I", HEADERS, source])


# ---- the examples ------------------------------------------------------------------------------------


@NEEDS_NATIVE
@pytest.mark.parametrize("name", ["form1", "uncond"])
def test_the_twin_examples_make_the_same_images(
    name: str, cpp_build: Path, native_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle, n = native_bundle(name), 3
    said = building.run([cpp_build / "examples" / "sample", bundle, tmp_path / "cpp.ppm", str(n)])
    with Sampler(bundle, backend="native") as sampler:
        batch = sampler.sample(n, seed=0)
    rows = [strip(images) for images in (batch.start, batch.images) if images is not None]
    np.testing.assert_array_equal(read_ppm(tmp_path / "cpp.ppm"), np.concatenate(rows))
    assert re.search(rf"^native bf16 \w+\n3 images in {len(batch.timesteps)} steps, [\d.]+ ms: ", said)

    python = [sys.executable, building.ROOT / "examples" / "sample.py", bundle, tmp_path / "python.png", str(n)]
    said = building.run(python, env={"PYTHONPATH": str(building.ROOT)})
    assert re.search(rf"^3 images in {len(batch.timesteps)} steps, [\d.]+ ms: ", said, re.MULTILINE)


@NEEDS_NATIVE
def test_the_latency_example_tells_percentiles_and_what_ran(cpp_build: Path, native_bundle: Callable[..., Path]) -> None:
    said = building.run([cpp_build / "examples" / "latency", native_bundle("form1"), "2", "9", "1"])
    found = re.fullmatch(
        r"native bf16 (amx|avx512_bf16|avx512|avx2), \d+ threads, batch 2, \d+ steps, 9 runs after 1\n"
        r"p50 ([\d.]+) ms  p90 ([\d.]+) ms  p99 ([\d.]+) ms\n",
        said,
    )
    assert found is not None, said
    p50, p90, p99 = map(float, found.groups()[1:])
    assert 0 < p50 <= p90 <= p99


def test_examples_stay_short() -> None:
    examples = [*(building.SOURCE / "examples").glob("*.cpp"), building.ROOT / "examples" / "sample.py"]
    assert len(examples) == 3
    for path in examples:
        assert len(path.read_text().splitlines()) < 40, path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "usage: sample BUNDLE OUT.ppm"), (["no.bundle", "x.ppm"], r"no\.bundle.*found.*expected")],
)
def test_the_example_answers_mistakes_in_one_line(arguments: list[str], expected: str, cpp_build: Path) -> None:
    done = building.attempt([cpp_build / "examples" / "sample", *arguments])
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert re.search(expected, done.stderr)


@pytest.mark.parametrize(
    ("folder", "language", "standard"),
    [(building.SOURCE, "c", "c99"), (building.SOURCE, "cpp", "c++17"), (building.ROOT, "cpp", "c++17")],
)
def test_the_readmes_code_compiles(folder: Path, language: str, standard: str, tmp_path: Path) -> None:
    building.need_tools()
    (code,) = re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    lines = code.splitlines()
    includes = [line for line in lines if line.startswith("#include")] or ["#include <diffusevae.h>", "#include <stdio.h>"]
    body = [line for line in lines if not line.startswith("#include")]
    source = tmp_path / f"readme.{language}"
    source.write_text("\n".join([*includes, "int readme(uint8_t* pixels) {", *body, "return pixels != 0;", "}"]) + "\n")
    building.run(["cc" if language == "c" else "c++", f"-std={standard}", "-fsyntax-only", "-I", HEADERS, source])


# ---- other people's projects -------------------------------------------------------------------------


@NEEDS_NATIVE
def test_a_project_finds_the_install_tree(
    cpp_programs: Path, cpp_installed: Path, native_bundle: Callable[..., Path]
) -> None:
    bundle = native_bundle("form1")
    assert str(cpp_installed) in building.run(["ldd", cpp_programs / "plain"])
    with Sampler(bundle, backend="native") as sampler:
        expected = sampler.sample(2, seed=5, steps=4).images
    np.testing.assert_array_equal(images_of(cpp_programs / "plain", bundle, 2, 5, 4), expected.ravel())
    installed = {path.name for path in (cpp_installed / "include").iterdir()}
    assert installed == {"diffusevae.h", "diffusevae.hpp", "diffusevae_cascade.hpp", "diffusevae_types.hpp"}


def test_cpp_config_names_the_wheels_folder(cpp_wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine", "cpp-config"]
    env = {"PYTHONPATH": str(cpp_wheel), "DIFFUSEVAE_KERNELS": "numpy"}
    package = building.run(command, env=env, cwd=tmp_path).strip()
    assert package == str(cpp_wheel / building.PACKAGED / "embed" / "cpp" / "cmake")
    include = building.run([*command, "--include-dir"], env=env, cwd=tmp_path).strip()
    assert (Path(include) / "diffusevae.hpp").is_file()
    # In CMAKE_PREFIX_PATH it serves as well as in diffusevae_DIR, with which cpp_runtimes is configured.
    base = ["cmake", "-S", building.PROGRAMS, "-B", tmp_path, "-G", "Ninja", f"-DDIFFUSEVAE_PYTHON={sys.executable}"]
    building.run([*base, f"-DCMAKE_PREFIX_PATH={package}"])
    assert (tmp_path / "diffusevae").is_dir()


@NEEDS_NATIVE
def test_a_project_compiles_the_wheels_sources(
    cpp_wheel: Path, cpp_runtimes: Path, native_bundle: Callable[..., Path]
) -> None:
    commands = json.loads((cpp_runtimes / "compile_commands.json").read_text())
    assert any(entry["file"] == str(cpp_wheel / building.PACKAGED / "kernels" / "cpu" / "kernels.cpp") for entry in commands)
    program = cpp_runtimes / "plain"
    assert f"{cpp_runtimes}/diffusevae/libdiffusevae.so" in building.run(["ldd", program])
    bundle = native_bundle("form1")
    with Sampler(bundle, backend="native") as sampler:
        expected = sampler.sample(2, seed=5, steps=4).images
    np.testing.assert_array_equal(images_of(program, bundle, 2, 5, 4), expected.ravel())


def test_cpp_config_is_the_checkout_in_a_checkout() -> None:
    said = building.run([sys.executable, "-m", "engine", "cpp-config"], env={"PYTHONPATH": str(building.ROOT)})
    assert said.strip() == str(building.SOURCE / "cmake")


def test_cpp_config_says_when_its_files_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from engine.cli import cpp_config

    monkeypatch.setattr(cpp_config, "FOLDER", tmp_path)
    with pytest.raises(cpp_config.CppFilesError, match=r"diffusevaeConfig\.cmake: found no such file, expected .* install"):
        cpp_config.cmake_dir()


@pytest.mark.parametrize(
    ("asked", "found"), [("0.2", True), (__version__, True), ("0.2.99", False), ("0.1.9", False), ("7.0", False)]
)
def test_a_project_may_ask_for_a_version(asked: str, found: bool, tmp_path: Path) -> None:
    """The file beside the sources; installed libraries have cmake's own."""
    building.need_tools()
    (tmp_path / "ask.cmake").write_text(
        f'set(PACKAGE_FIND_VERSION "{asked}")\n'
        'string(REPLACE "." ";" parts "${PACKAGE_FIND_VERSION}.0.0")\n'
        "list(GET parts 0 PACKAGE_FIND_VERSION_MAJOR)\nlist(GET parts 1 PACKAGE_FIND_VERSION_MINOR)\n"
        f'include("{building.SOURCE / "cmake" / "diffusevaeConfigVersion.cmake"}")\n'
        'message("${PACKAGE_VERSION} ${PACKAGE_VERSION_COMPATIBLE}")\n'
    )
    said = building.attempt(["cmake", "-P", tmp_path / "ask.cmake"]).stderr.split()
    assert said == [__version__, "TRUE" if found else "FALSE"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-DCMAKE_CXX_FLAGS=-O2 -ffast-math"], "found `-O2 -ffast-math`, expected no fast-math"),
        (["-DDIFFUSEVAE_JSON_INCLUDE_DIR=/nowhere"], "found no nlohmann/json.hpp in `/nowhere`, expected version 3.11"),
        (
            ["-DDIFFUSEVAE_TENSORRT=ON", "-DTensorRT_LIBRARY=", "-DTensorRT_INCLUDE_DIR=/here"],
            "found no TensorRT_LIBRARY, expected the TensorRT SDK",
        ),
    ],
)
def test_configuring_says_what_is_missing(options: list[str], expected: str, tmp_path: Path) -> None:
    building.need_tools()
    base = ["cmake", "-S", building.SOURCE, "-B", tmp_path, "-G", "Ninja", f"-DDIFFUSEVAE_PYTHON={sys.executable}"]
    done = building.attempt([*base, *options])
    assert done.returncode != 0
    assert expected in " ".join(done.stderr.split())
