"""Edits in C++: the bits of Python on the same backend, the same refusals, and the program that the studio gives."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, BundleError, Sampler
from engine.bundle.directions import Directions
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_directions
from tests.cpp import building
from tests.cpp.capi import ARGUMENT, BUNDLE, CSampler, Failed, Library, open_c
from tests.manifests import edit
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE
# A canvas as [height, width, 4] numbers in one list.
PIXELS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
NAMES = ("glasses", "hair=afro", "axis 1")
EDITS: list[dict[str, float]] = [{"glasses": 1.0}, {"axis 1": -0.3, "glasses": 1 / 3}, {"hair=afro": 0.0}, {}]


@pytest.fixture(scope="module")
def bundle(native_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = native_bundle("form1")
    path = tmp_path_factory.mktemp("directions") / "directions.bundle"
    path.mkdir()
    for file in source.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    opened = Bundle.open(path)
    assert opened.manifest.drawn is not None
    vectors = np.random.default_rng(0).standard_normal((3, int(opened.manifest.drawn.sample[0]))).astype(np.float32)
    write_directions(opened, Directions(NAMES, vectors), {"date": "2026-01-02"})
    return path


@pytest.fixture(scope="module")
def sampler(cpp_library: Path, bundle: Path) -> Iterator[CSampler]:
    with open_c(Library(cpp_library), bundle, max_batch=2) as opened:
        yield opened


def test_edits_are_the_same_bits(sampler: CSampler, bundle: Path) -> None:
    assert [sampler.info.directions[i].decode() for i in range(sampler.info.directions_count)] == list(NAMES)
    with Sampler(bundle, "native", threads=1) as python:
        plain = python.sample(3, seed=5, steps=2).values["z"]
        for given in ({"seed": 5}, {"seed": 5, "z": plain[:1] * 2}):
            for edits in EDITS:
                found = sampler.sample(3, steps=2, edits=edits, **given)
                expected = python.sample(3, steps=2, edits=edits, **given)
                assert np.array_equal(found.values["z"].view(np.uint32), expected.values["z"].view(np.uint32))
                assert np.array_equal(found.images, expected.images)
        assert not np.array_equal(python.sample(3, seed=5, steps=2, edits=EDITS[0]).values["z"], plain)


def test_the_studios_program_compiles_and_makes_the_picture_that_it_shows(
    cpp_installed: Path, bundle: Path, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on the PATH")
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    from tests.http_served import serving

    with serving(bundle, backend="native", precision="auto") as served, playwright.sync_playwright() as api:
        page = api.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.goto(f"http://127.0.0.1:{served.port}/")
        page.locator("#wall-A[data-drawn]").wait_for()
        page.locator("#direction-0").press("ArrowRight")
        page.locator("#temperature").press("ArrowLeft")
        page.locator("#tab-cpp").click()
        page.locator("#code", has_text='options.edits = {{"glasses", 0.02}}').wait_for()
        page.locator("#code", has_text="options.temperature").wait_for()
        program, shown = page.locator("#code").inner_text(), page.locator("#focus").evaluate(PIXELS)
    head, _, end = program.rpartition("}")
    assert end == ""
    source, target = tmp_path / "studio.cpp", tmp_path / "studio"
    source.write_text(f"#include <cstdio>\n{head}std::fwrite(batch.images.data(), 1, batch.images.size(), stdout);\n}}\n")
    libraries = cpp_installed / "lib"
    flags = ["-std=c++17", f"-I{cpp_installed / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ldiffusevae"]
    building.run([os.environ.get("CXX", "c++"), source, "-o", target, *flags])
    images = subprocess.run([target], capture_output=True, check=True, timeout=60).stdout
    assert bytes(np.array(shown, np.uint8).reshape(-1, 4)[:, :3]) == images


@pytest.mark.parametrize(
    "edits", [{"glases": 1.0}, {"glasses": float("nan")}, {"glasses": float("inf")}, {"glasses": 1000.5}], ids=str
)
def test_edits_are_refused_in_the_same_words(sampler: CSampler, bundle: Path, edits: dict[str, Any]) -> None:
    with Sampler(bundle, "native") as python, pytest.raises(ArgumentError) as expected:
        python.sample(1, seed=0, edits=edits)
    with pytest.raises(Failed) as found:
        sampler.sample(1, seed=0, edits=edits)
    assert found.value.status == ARGUMENT
    assert str(expected.value).rstrip(".") in str(found.value)


def test_a_bundle_without_directions_names_the_command(cpp_library: Path, native_bundle: Callable[..., Path]) -> None:
    with open_c(Library(cpp_library), native_bundle("form1")) as opened, pytest.raises(Failed, match="fit-directions"):
        opened.sample(1, seed=0, edits={"glasses": 1.0})


@pytest.mark.parametrize(
    ("field", "value"),
    [("names", ["a", "b"]), ("names", ["a", "a", "b"]), ("names", []), ("input", "x"), ("of", "0" * 64), ("size", 7)],
)
def test_spoilt_directions_are_refused_as_in_python(
    cpp_library: Path, bundle: Path, tmp_path: Path, field: str, value: object
) -> None:
    path = tmp_path / "spoilt.bundle"
    path.mkdir()
    for file in bundle.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    edit(path, f"directions.{field}", value)
    with pytest.raises(BundleError) as expected:
        Sampler(path, "native")
    with pytest.raises(Failed) as found, open_c(Library(cpp_library), path):
        pass
    assert found.value.status == BUNDLE
    assert str(expected.value).split(";")[0].removeprefix(str(path)) in str(found.value)
