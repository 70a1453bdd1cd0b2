"""Edits in C++: the bits of Python on the same backend, and the same refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, BundleError, Sampler
from engine.bundle.directions import Directions
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_directions
from tests.cpp.capi import ARGUMENT, BUNDLE, CSampler, Failed, Library, open_c
from tests.manifests import edit
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE
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
