"""The package in strangers' hands: sdist to wheel to a clean environment, used from an empty folder without the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from engine import __version__
from tests import installed
from tests.installed import PIP, ROOT, Environment, run

SHIPPED = {"engine/_examples/avatars/avatars.ckpt", "engine/_examples/avatars/latent_prior.safetensors"}
# Whether every file that a distribution recorded is there, with the bytes that it brought.
INTACT = """
import base64, hashlib, importlib.metadata, importlib.util, sys
for name in sys.argv[1:]:
    files = importlib.metadata.files(name)
    assert files, name
    for file in files:
        if file.hash is not None:
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
for name in ("engine", "export", "kernels"):
    print(importlib.util.find_spec(name).origin)
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    return installed.build_sdist(installed.copy_of_the_checkout(folder), folder / "dist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    return installed.build_wheel(sdist, tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture(scope="module")
def stranger(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel, which takes third parties' packages from this one."""
    environment = Environment.make(tmp_path_factory.mktemp("stranger") / "venv")
    environment.install(wheel)
    environment.borrow_dependencies()
    return environment


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the stranger works in: empty at first, and with a space in its name."""
    folder = tmp_path_factory.mktemp("work") / "an empty folder"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def bundle(stranger: Environment, empty: Path) -> Path:
    """The shipped model, built by the installed command from the wheel's own copy."""
    model = Path(stranger.call("diffusevae", "examples", cwd=empty).strip()) / "avatars"
    prior = ("--latent-prior", model / "latent_prior.safetensors")
    words = ("build", model / "avatars.ckpt", *prior, "--backends", "onnxruntime", "--out", "a v.bundle")
    said = stranger.call("diffusevae", *words, cwd=empty)
    assert "diffusevae sample 'a v.bundle' -n 16 --out grid.png" in said
    return empty / "a v.bundle"


def tracked() -> set[str]:
    """What git has of this checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_sdist_is_the_checkout(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked() if not name.startswith((".", "tests/."))} - names == set()
    assert [name for name in names if name.endswith((".so", ".whl", ".fatbin", ".pyc", ".o"))] == []


def test_the_wheel_installs_two_names(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    dist_info = f"diffusevae_engine-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"engine", "export", dist_info}
    assert wheel.name.startswith(f"diffusevae_engine-{__version__}-py3-none-")


def test_the_wheel_carries_what_is_compiled_and_what_compiles(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"engine/kernels/_kernels.so", "engine/py.typed", "export/py.typed", "export/build_engines.py"} | SHIPPED <= names
    suffixes = (".c", ".cpp", ".cu", ".h", ".hpp", ".cmake", ".map", ".txt")
    sources = {name for name in tracked() if name.startswith(("kernels/", "embed/")) and name.endswith(suffixes)}
    assert {f"engine/_sources/{name}" for name in sources} - names == set()
    assert sum(entry.file_size for entry in zipfile.ZipFile(wheel).infolist()) < 40_000_000


def test_it_is_the_installed_package_that_runs(stranger: Environment, empty: Path) -> None:
    code = "import engine, export, sys; print(engine.__file__, export.__file__, 'torch' in sys.modules)"
    expected = f"{stranger.site}/engine/__init__.py {stranger.site}/export/__init__.py False"
    assert stranger.call("python", "-c", code, cwd=empty).strip() == expected
    assert __version__ in stranger.call("diffusevae", "--version", cwd=empty)


def test_from_the_shipped_checkpoint_to_images(stranger: Environment, bundle: Path, empty: Path) -> None:
    said = stranger.call("diffusevae", "info", bundle.name, cwd=empty)
    assert "avatars" in said
    stranger.call("diffusevae", "sample", bundle.name, "-n", "2", "--seed", "0", "--out", "grid.png", cwd=empty)
    assert (empty / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_triton_generator(stranger: Environment, bundle: Path, empty: Path) -> None:
    stranger.call("diffusevae", "triton-repo", bundle.name, "--out", "model_repository", cwd=empty)
    (config,) = (empty / "model_repository").glob("*/config.pbtxt")
    assert 'backend: "python"' in config.read_text()


def test_the_other_builder_explains_itself(stranger: Environment, empty: Path) -> None:
    assert stranger.call("diffusevae", "fit-prior", "--help", cwd=empty).startswith("Usage: diffusevae fit-prior ")


def test_a_remedy_can_be_pasted(stranger: Environment, empty: Path) -> None:
    said = stranger.call("diffusevae", "info", "no such.bundle", cwd=empty, status=1)
    assert "diffusevae build CKPT" in said
    assert "python export/" not in said


def test_building_without_torch_names_the_extra(stranger: Environment, empty: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['diffusevae', 'build', 'x']\n"
        "from engine.cli.main import main; main()"
    )
    said = stranger.call("python", "-c", code, cwd=empty, status=1)
    assert "pip install 'diffusevae-engine[export]'" in said
    assert "Traceback" not in said


def test_cmake_finds_the_library(stranger: Environment, empty: Path, tmp_path: Path) -> None:
    """Configuring suffices here: tests/cpp compile what a wheel carries."""
    if shutil.which("cmake", path=str(Path(sys.executable).parent)) is None and shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = Path(stranger.call("diffusevae", "cpp-config", cwd=empty).strip())
    assert folder == stranger.site / "engine" / "_sources" / "embed" / "cpp" / "cmake"
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(app CXX)\n"
        f"find_package(diffusevae {__version__} CONFIG REQUIRED)\n"
        "add_executable(app app.cpp)\ntarget_link_libraries(app PRIVATE diffusevae::diffusevae)\n"
    )
    (tmp_path / "app.cpp").write_text("#include <diffusevae.hpp>\nint main() { return diffusevae_version() == nullptr; }\n")
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    python = f"-DDIFFUSEVAE_PYTHON={sys.executable}"
    run(cmake, "-S", ".", "-B", "build", f"-Ddiffusevae_DIR={folder}", python, cwd=tmp_path)
    assert re.search(r"libdiffusevae|diffusevae", (tmp_path / "build" / "Makefile").read_text())


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package `kernels` of the package index, whose import name was ours once."""
    folder = tmp_path_factory.mktemp("kernels")
    line = [*map(str, PIP), "download", "--no-deps", "--only-binary", ":all:", "-d", str(folder), "kernels"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=180)
    if done.returncode != 0:
        pytest.skip(f"the package index was not reached: {done.stderr.strip().splitlines()[-1:]}")
    (found,) = folder.glob("kernels-*.whl")
    return found


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "ours second"])
def test_beside_the_package_kernels(ours_first: bool, wheel: Path, huggingface: Path, tmp_path: Path) -> None:
    environment = Environment.make(tmp_path / "venv")
    for one in (wheel, huggingface) if ours_first else (huggingface, wheel):
        environment.install(one)
    said = environment.call("python", "-c", INTACT, "diffusevae-engine", "kernels", cwd=tmp_path).split()
    assert said == [str(environment.site / name / "__init__.py") for name in ("engine", "export", "kernels")]
