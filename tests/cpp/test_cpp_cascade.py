"""Cascades in C++: the bits of Python on the same backend, the same refusals, and the Cascade of the header."""

from __future__ import annotations

import ctypes
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Bundle, Cascade, CascadeError, EngineError, Sampler, abilities, stages
from engine.bundle.files import MANIFEST_FILE
from engine.solver.noise import stage_seeds
from engine.stages import name_next
from tests.cpp import building, capi
from tests.cpp.capi import CBatch, CSampler, Failed, Library, open_c
from tests.cpp.test_cpp_equal import assert_same
from tests.manifests import edit
from tests.native_models import NEEDS_NATIVE
from tests.toy_family import IMAGE, build_family

Pair = tuple[Sampler, CSampler]
# What the program is refused, all of it before a row of the first stage; and a run that is cancelled between its stages.
REFUSED = [
    "ARGUMENT: found height, width or overlap for a cascade, expected none", "ARGUMENT: stage 2: steps is 302",
    "ARGUMENT: stage 2: noise_level is 1000; expected 0 (none) .. 999", "ARGUMENT: stage 2: inputs has an array 'label'",
    "ARGUMENT: stage 2: upscale was given noise_level and level, which it sets",
    "ARGUMENT: no stage of this cascade takes level", "0 rows before that", "CANCELLED: ", "0 rows after that",
]  # fmt: skip
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def check(pair: Pair, images: np.ndarray, **given: Any) -> CBatch:
    """What C++ makes, once it is what Python makes of the same images, enlarged."""
    ours, theirs = pair
    manifest = ours.bundle.manifest
    verb = ours.upscale if abilities.upscales(manifest) else ours.refine
    batch = verb(stages.enlarged(manifest, images), **given)
    found = theirs.upscale(images, values=list(batch.values), **given)
    assert_same(batch, found)
    return found


# ---- the native engine: from an image ----------------------------------------------------------------------------------


@NEEDS_NATIVE
def test_a_chain_from_an_image(native: Pair) -> None:
    ours, theirs = native
    channels, height, width = theirs.info.state
    rng = np.random.default_rng(4)
    small = rng.integers(0, 256, (3, height // 2, width - 3, channels), np.uint8)
    whole = rng.integers(0, 256, (3, height, width, channels), np.uint8)
    unit = np.ascontiguousarray(small.transpose(0, 3, 1, 2) / 255, np.float32)
    for given in (
        {"t_start": 400, "steps": 3},
        {"t_start": 400, "steps": 3, "noise_level": 0, "eta": 1.0},
        {"t_start": 300, "steps": 4, "noise_level": 250},
        {"t_start": 300, "steps": 3, "method": "dpmpp_2m", "clip": False},
    ):
        for images in (small, unit, whole, whole[:1]):
            check(native, images, seed=2**64 - 2, **given)
    if ours.bundle.manifest.pipeline.state.start is not None:
        check(native, small, seed=[5, 5, 7], steps=2)
        check(native, small, seed=3, steps=2, noise_level=100)


@NEEDS_NATIVE
def test_inputs_of_one_name_are_compared_as_in_python(
    native_bundle: Callable[..., Path], tmp_path: Path, library: Library
) -> None:
    """An input beside those that a network takes stands for any: same name, another range, dtype or shape."""
    extra: dict[str, Any] = {"name": "extra", "draw": None, "picture": None, "null": None}
    whole: dict[str, Any] = {**extra, "dtype": "int64", "shape": ["batch"], "range": [0, 4]}
    others: list[tuple[dict[str, Any], bool]] = [
        ({**whole, "range": [3, 9]}, True), ({**whole, "range": "unbounded"}, True), ({**whole, "range": [5, 9]}, False),
        ({**whole, "dtype": "float32"}, False), ({**whole, "shape": ["batch", 2]}, False),
        ({**whole, "shape": ["batch", "length"]}, False),
    ]  # fmt: skip
    paths = [tmp_path / f"{name}.bundle" for name in "ab"]
    for path, spec in zip(paths, (whole, whole), strict=True):
        shutil.copytree(native_bundle("form1"), path)
        inputs = json.loads((path / MANIFEST_FILE).read_text())["inputs"]
        edit(path, "inputs", [*inputs, spec])
    with open_c(library, paths[0]) as first:
        for spec, fits in others:
            edit(paths[1], "inputs", [*inputs, spec])
            with open_c(library, paths[1]) as second:
                both = (capi.POINTER * 2)(first.handle, second.handle)
                if fits:
                    library.call("check_stages", both, 2)
                    continue
                with pytest.raises(Failed) as found:
                    library.call("check_stages", both, 2)
            with pytest.raises(CascadeError) as expected:
                stages.check_stages([Bundle.open(path).manifest for path in paths])
            assert str(found.value) == f"BUNDLE: {expected.value}"


@NEEDS_NATIVE
def test_refusals_are_those_of_python(native: Pair) -> None:
    ours, theirs = native
    channels, height, width = theirs.info.state
    image = np.zeros((1, height, width, channels), np.uint8)
    cases: list[tuple[np.ndarray, dict[str, Any]]] = [
        (image, {"noise_level": -1, "t_start": 300}), (image, {"noise_level": 10**6, "t_start": 300}),
        (np.zeros((1, height + 1, width, channels), np.uint8), {}), (np.zeros((channels,), np.uint8), {}),
    ]  # fmt: skip
    for images, given in cases:
        with pytest.raises(EngineError) as expected:
            ours.refine(stages.enlarged(ours.bundle.manifest, images), **given)
        for run in (theirs.upscale, theirs.check_upscale):
            with pytest.raises(Failed) as found:
                run(images, **given)
            assert found.value.status == capi.ARGUMENT
            assert str(found.value) == f"ARGUMENT: {expected.value}"
    theirs.check_upscale(image, t_start=300, steps=3, noise_level=9)
    with pytest.raises(Failed, match="upscale has no option 'n'"):
        theirs.upscale(image, n=1, t_start=3)
    if ours.bundle.manifest.pipeline.state.start is None:
        with pytest.raises(Failed, match="found no t_start, expected one"):
            theirs.upscale(image)


def test_seeds_of_stages_are_pythons(library: Library) -> None:
    seeds = np.array([0, 1, 7, 2**64 - 1], np.uint64)
    for stage in range(4):
        found = np.zeros_like(seeds)
        library.call("stage_seeds", capi.address(seeds), len(seeds), stage, capi.address(found))
        assert found.tolist() == stage_seeds(seeds, stage).tolist()


# ---- other runtimes: of a picture --------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["int64", "float32", None])
def test_a_picture_is_noised_and_told(level: str | None, tmp_path: Path, cpp_runtimes: Path) -> None:
    path = build_family(tmp_path / "a.bundle", pictures=("photo",), encodes=("state_encoder",), level=level)
    runtimes = Library(cpp_runtimes / "diffusevae" / building.LIBRARY)
    images = np.random.default_rng(3).integers(0, 256, (3, 7, 5, IMAGE[0]), np.uint8)
    with Sampler(path, "openvino", "f32", 2) as ours, open_c(runtimes, path, backend="openvino") as theirs:
        made = runtimes.made(capi.StageInputs, "stage_inputs")
        runtimes.call("get_stage_inputs", theirs.handle, ctypes.byref(made))
        assert (made.picture, made.level) == (b"photo", b"level" if level else None)
        for given in ({}, {"noise_level": 0}, {"noise_level": 90, "guidance": 0.5, "eta": 1.0}):
            check((ours, theirs), images, seed=3, label=np.array([1, 2, 3]), **given)
        if level:
            check((ours, theirs), images, seed=3, label=np.array([4]), level=np.array([70], level))
            with pytest.raises(Failed, match="noise_level and level, which it sets"):
                theirs.upscale(images, noise_level=3, label=np.array([4]), level=np.array([70], level))
        for run in (theirs.upscale, theirs.check_upscale):
            with pytest.raises(Failed, match="takes photo from the images"):
                run(images, label=np.array([4]), photo=np.zeros((1, *IMAGE), np.float32))


def test_a_latent_chain_starts_from_what_the_image_is_encoded_to(tmp_path: Path, cpp_runtimes: Path) -> None:
    runtimes = Library(cpp_runtimes / "diffusevae" / building.LIBRARY)
    images = np.random.default_rng(3).integers(0, 256, (2, 6, 8, IMAGE[0]), np.uint8)
    for encodes in (("state_encoder",), ("state_encoder", "image_encoder")):
        path = build_family(tmp_path / f"{len(encodes)}.bundle", encodes=encodes)
        with Sampler(path, "openvino", "f32", 2) as ours, open_c(runtimes, path, backend="openvino") as theirs:
            for given in ({}, {"noise_level": 200}):
                check((ours, theirs), images, seed=5, label=np.array([3]), t_start=400, steps=4, **given)


# ---- the next bundle ---------------------------------------------------------------------------------------------------


@pytest.fixture
def named(native_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle that names another, which hears of the noise level (and makes nothing of it), in a folder whose name a shell
    would split."""
    folder = tmp_path / "it's two words"
    for name in ("form1", "uncond"):
        shutil.copytree(native_bundle(name), folder / f"{name}.bundle")
    level = {
        "name": "level", "dtype": "int64", "shape": ["batch"], "range": [0, 999], "draw": None, "picture": None,
        "null": None,
    }  # fmt: skip
    edit(folder / "uncond.bundle", "inputs", [level])
    edit(folder / "uncond.bundle", "augmentation", {"input": "level"})
    name_next(folder / "form1.bundle", folder / "uncond.bundle", t_start=300, steps=5, noise_level=20)
    return folder / "form1.bundle"


def follow(library: Library, first: CSampler) -> CSampler:
    options = library.made(capi.OpenOptions, "open_options")
    options.threads = 2
    stages, handle = (capi.POINTER * 1)(first.handle), capi.POINTER()
    library.call("open_next", stages, 1, ctypes.byref(options), ctypes.byref(handle))
    return CSampler(library, handle)


@NEEDS_NATIVE
def test_the_next_bundle_is_opened_and_checked(named: Path, library: Library) -> None:
    after = named.with_name("uncond.bundle")
    with open_c(library, named) as first:
        with follow(library, first) as second:
            both = (capi.POINTER * 2)(first.handle, second.handle)
            library.call("check_stages", both, 2)
            with pytest.raises(Failed, match=r"BUNDLE: found a cascade of 1 bundles, expected 2 .. 8"):
                library.call("check_stages", both, 1)
            recorded = library.made(capi.StageOptions, "stage_options")
            library.call("get_stage_options", first.handle, second.handle, ctypes.byref(recorded))
            assert (recorded.steps, recorded.t_start, recorded.noise_level) == (5, 300, 20)
            assert recorded.guidance == capi.UNSET_NUMBER
            library.call("get_stage_options", second.handle, first.handle, ctypes.byref(recorded))
            assert (recorded.steps, recorded.t_start) == (capi.UNSET, capi.UNSET)
        edit(after, "source.sha256", "6" * 64)
        with pytest.raises(Failed) as found:
            follow(library, first)
        with pytest.raises(EngineError) as expected:
            Cascade(named)
        assert found.value.status == capi.BUNDLE
        assert str(found.value).removeprefix("BUNDLE: ").partition(", or ")[0] == str(expected.value).partition(", or ")[0]
        shutil.rmtree(after)
        with pytest.raises(Failed, match=r"the next bundle of .*form1\.bundle: .*uncond\.bundle"):
            follow(library, first)
        name_next(named, None)
    edit(named, "next", {
        "bundle": named.name, "source": "0" * 64, "steps": None, "t_start": None, "noise_level": None, "guidance": None,
    })  # fmt: skip
    with (
        open_c(library, named) as circle,
        pytest.raises(Failed, match=r"found form1\.bundle as the next bundle, which comes before it") as found,
    ):
        follow(library, circle)
    assert str(found.value).endswith(f"; end it there with: diffusevae cascade {shlex.quote(str(named))} --remove")


@NEEDS_NATIVE
@pytest.mark.parametrize("kind", ["cpp_programs", "cpp_sanitized"])
def test_the_cascade_of_the_header(kind: str, named: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    program, target = request.getfixturevalue(kind) / "cascade", tmp_path / "x.f32"
    said = building.run([program, named, target], env=SANITIZERS).splitlines()
    with Cascade(named, "native", threads=2) as python:
        expected = python.sample(3, seed=7, steps=4, stages=[{"steps": 3, "noise_level": 40}])
    assert said[0].startswith("no stage of this cascade takes label")
    for line, start in zip(said[1 : 1 + len(REFUSED)], REFUSED, strict=True):
        assert line.startswith(start), line
    assert said[1 + len(REFUSED) :] == ["{}x{}".format(*one.images.shape[1:3]) for one in expected.stages]
    assert target.read_bytes() == np.ascontiguousarray(expected.x).tobytes()
    name_next(named, None)
    refused = building.attempt([program, named, target])
    assert refused.returncode == 1
    assert "BUNDLE: found a cascade of 1 bundles, expected 2 .. 8" in refused.stdout
