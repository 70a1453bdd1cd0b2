"""The builds that the C++ tests share. The library as users build it, programs over it, and both under the sanitizers."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import Sampler
from engine.bundle.writer import write_bundle
from tests import toy
from tests.cpp import building
from tests.cpp.capi import CSampler, Library, open_c
from tests.cpp.refusals import build_toy
from tests.manifests import full_files, full_manifest


@pytest.fixture(scope="session")
def cpp_build() -> Path:
    """The folder of the plain build: the library and the examples, by their names in examples/."""
    return building.build("plain")


@pytest.fixture(scope="session")
def cpp_library(cpp_build: Path) -> Path:
    """libdiffusevae.so of the plain build."""
    return cpp_build / building.LIBRARY


@pytest.fixture(scope="session")
def library(cpp_library: Path) -> Library:
    """The C interface of the plain build, for ctypes."""
    return Library(cpp_library)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A toy bundle whose manifest and files are sound, and whose engines are missing."""
    return build_toy(tmp_path / "toy.bundle")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A bundle with an entry of everything; its prior is refused, behind whatever a test spoils."""
    models = toy.models_of(1, 8, 4, False)
    write_bundle(tmp_path / "full.bundle", full_manifest(models), full_files(models))
    return tmp_path / "full.bundle"


@pytest.fixture(scope="module", params=["form1", "form2", "uncond"])  # an encoder; a centre too; neither, nor a start value
def native(
    request: pytest.FixtureRequest, library: Library, native_bundle: Callable[..., Path]
) -> Iterator[tuple[Sampler, CSampler]]:
    """A golden model on the native engine, in Python and in C."""
    path = native_bundle(request.param)
    with Sampler(path, "native", "bf16", threads=2, max_batch=2) as ours, open_c(library, path, max_batch=2) as theirs:
        yield ours, theirs


@pytest.fixture(scope="session")
def cpp_installed(cpp_build: Path) -> Path:
    """The plain build, installed: include/ and lib/."""
    building.run(["cmake", "--install", cpp_build, "--prefix", cpp_build / "installed"])
    return cpp_build / "installed"


@pytest.fixture(scope="session")
def cpp_programs(cpp_installed: Path) -> Path:
    """The folder of the programs of tests/cpp/programs, built against the installed library."""
    return building.build("programs", f"-DCMAKE_PREFIX_PATH={cpp_installed}", source=building.PROGRAMS)


@pytest.fixture(scope="session")
def cpp_sanitized() -> Path:
    """The same programs and the library's sources with AddressSanitizer and UndefinedBehaviorSanitizer.

    The library is diffusevae/libdiffusevae.so in that folder.
    """
    package = f"-Ddiffusevae_DIR={building.SOURCE / 'cmake'}"
    return building.build("sanitized", "-DDIFFUSEVAE_SANITIZE=ON", package, source=building.PROGRAMS)


@pytest.fixture(scope="session")
def cpp_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the project's wheel was installed: what `pip install` puts into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("engine", "embed", "export", "kernels"):
        shutil.copytree(building.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(building.ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    env = {"DIFFUSEVAE_KERNELS": "numpy"}  # the Python side's own library would only take time here
    building.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", folder], env=os.environ | env)
    (wheel,) = folder.glob("*.whl")
    building.run([*pip, "install", wheel, "--no-deps", "--target", folder / "site"])
    return building.keep(folder / "site", "wheel")


@pytest.fixture(scope="session")
def cpp_runtimes(cpp_wheel: Path) -> Path:
    """The same programs over the wheel's sources, with OpenVINO, and with TensorRT's stand-in (tensorrt_stand_in/)."""
    found = importlib.util.find_spec("openvino")
    if found is None or not found.submodule_search_locations:
        pytest.skip("openvino is not installed")
    stand_in = building.build("tensorrt_stand_in", source=building.ROOT / "tests" / "cpp" / "tensorrt_stand_in")
    options = {
        "diffusevae_DIR": cpp_wheel / building.PACKAGED / "embed" / "cpp" / "cmake",
        "DIFFUSEVAE_OPENVINO": "ON", "DIFFUSEVAE_TENSORRT": "ON",
        "OpenVINO_DIR": Path(found.submodule_search_locations[0]) / "cmake", "TensorRT_ROOT": stand_in,
        "CUDAToolkit_ROOT": stand_in,
    }  # fmt: skip
    return building.build("runtimes", *(f"-D{name}={value}" for name, value in options.items()), source=building.PROGRAMS)
