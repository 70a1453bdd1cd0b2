"""The toy family (tests/toy_family.py) in C++: what it takes and gives by name, and the bits of Python's OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Sampler
from engine.bundle.reader import Bundle
from engine.solver.table import build_step_table
from tests.cpp import building
from tests.cpp.capi import ARGUMENT, Failed, Library, looking, open_c
from tests.toy_family import CLASSES, IMAGE, STATE, STYLE, Reference, build_family

TOLERANCE = 2e-5
RUNS: dict[str, dict[str, Any]] = {
    "recorded": {},
    "guided": {"steps": 5, "guidance": 1.5},
    "ancestral": {"steps": 6, "method": "ddpm", "guidance": -0.5},
    "history": {"steps": 7, "method": "dpmpp_2m", "guidance": 0.5},
    "noisy": {"steps": 5, "eta": 0.7, "temperature": 0.8},
    "only the nulls": {"steps": 4, "guidance": -1.0},
    "on an interval": {"steps": 6, "guidance": 1.5, "guidance_interval": (333, 666)},
}


@pytest.fixture(scope="module")
def library(cpp_runtimes: Path) -> Library:
    return Library(cpp_runtimes / "diffusevae" / building.LIBRARY)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("family") / "latents.bundle")


@pytest.fixture(scope="module")
def canvas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that can be computed in tiles."""
    return build_family(tmp_path_factory.mktemp("canvas") / "c.bundle", encodes=["state_encoder"], quantizes=True)


def same(found: Any, batch: Any) -> None:
    """The same bits: one runtime, the same options, the same arithmetic around it."""
    np.testing.assert_array_equal(found.x, batch.x)
    np.testing.assert_array_equal(found.images, batch.images)
    np.testing.assert_array_equal(found.timesteps, batch.timesteps)
    for name, expected in batch.values.items():
        np.testing.assert_array_equal(found.values[name], expected)


def test_it_is_listed_as_the_manifest_declares_it(family: Path, library: Library) -> None:
    with open_c(library, family, backend="openvino") as sampler:
        label, style = sampler.inputs["label"], sampler.inputs["style"]
        assert list(sampler.inputs) == ["label", "style"]
        assert (label.rank, list(label.shape[:1]), label.drawn, label.has_null, label.bounded) == (1, [-1], 0, 1, 1)
        assert (label.low, label.high) == (0, CLASSES)
        assert (style.rank, list(style.shape[:2]), style.drawn, style.has_null, style.bounded) == (2, [-1, STYLE], 1, 1, 0)
        assert list(sampler.outputs["images"].shape[:4]) == [-1, *IMAGE[1:], IMAGE[0]]
        assert list(sampler.outputs["x"].shape[:4]) == [-1, *STATE]
        assert {"context", "scale", "shift", "decoded"} < set(sampler.outputs)


@pytest.mark.parametrize("run", RUNS)
def test_it_makes_the_bits_of_python(family: Path, run: str, library: Library) -> None:
    given = {"seed": 11, "label": np.array([3, 10, 0]), **RUNS[run]}
    with open_c(library, family, backend="openvino") as c, Sampler(family, "openvino", "f32", 2) as python:
        same(c.sample(3, **given), python.sample(3, **given))


@pytest.mark.parametrize("run", ["recorded", "noisy", "ancestral", "on an interval"])
@pytest.mark.parametrize(("height", "width", "overlap"), [(20, 40, 0.5), (14, 16, 0.0), (12, 16, 0.9)])
def test_a_larger_picture_has_the_bits_of_python(
    canvas: Path, run: str, height: int, width: int, overlap: float, library: Library
) -> None:
    style = np.linspace(-1, 1, STYLE, dtype=np.float32)[None]
    given = {"seed": 11, "label": np.array([3, 10, 0]), "style": style, **RUNS[run]}
    size = {"height": height, "width": width, "overlap": overlap}
    python = Sampler(canvas, "openvino", "f32", 2, size=(height, width), overlap=overlap)
    with open_c(library, canvas, backend="openvino", **size) as c, python, c.clone() as twin:
        expected = python.sample(3, **given, quantize_denoised=True)
        same(c.sample(3, **given, quantize_denoised=True), expected)
        same(twin.sample(3, **given, quantize_denoised=True), expected)
        assert list(c.outputs["images"].shape[:4]) == [-1, height, width, IMAGE[0]]


def test_a_larger_picture_is_filled_in_to_the_bits_of_python(canvas: Path, library: Library) -> None:
    images = np.random.default_rng(8).integers(0, 256, (2, 20, 40, IMAGE[0]), np.uint8)
    mask = np.zeros((20, 40), np.uint8)
    mask[4:12, 9:30] = 255
    given = {"seed": 5, "label": np.array([3, 10]), "style": np.ones((1, STYLE), np.float32), "steps": 3, "eta": 1.0}
    python = Sampler(canvas, "openvino", "f32", 2, size=(20, 40), overlap=0.5)
    with open_c(library, canvas, backend="openvino", height=20, width=40, overlap=0.5) as c, python:
        same(c.inpaint(images, mask, **given), python.inpaint(images, mask, **given))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose graphs run in any size."""
    folder = tmp_path_factory.mktemp("whole") / "w.bundle"
    return build_family(folder, encodes=["state_encoder"], quantizes=True, multiple=2)


@pytest.mark.parametrize("run", ["recorded", "noisy", "ancestral", "on an interval"])
@pytest.mark.parametrize(("height", "width"), [(20, 40), (12, 16), (4, 24)])
def test_a_whole_canvas_has_the_bits_of_python(whole: Path, run: str, height: int, width: int, library: Library) -> None:
    style = np.linspace(-1, 1, STYLE, dtype=np.float32)[None]
    given = {"seed": 11, "label": np.array([3, 10, 0]), "style": style, **RUNS[run]}
    python = Sampler(whole, "openvino", "f32", 2, size=(height, width))
    with open_c(library, whole, backend="openvino", height=height, width=width) as c, python, c.clone() as twin:
        batch = python.sample(3, **given)
        assert batch.images.shape == (3, height, width, IMAGE[0])
        for sampler in (c, twin):
            same(sampler.sample(3, **given), batch)


@pytest.mark.parametrize("overlap", [None, 0.5])
def test_labels_of_pixels_lie_over_the_state_as_in_python(tmp_path: Path, overlap: float | None, library: Library) -> None:
    path = build_family(tmp_path / "s.bundle", encodes=["state_encoder"], multiple=2, segments=True)
    labels = np.random.default_rng(1).integers(0, 4, (2, 20, 40))
    given = {"seed": 5, "label": np.array([3, 10]), "segmentation": labels, "steps": 3, "eta": 1.0}
    cut = {} if overlap is None else {"overlap": overlap}
    python = Sampler(path, "openvino", "f32", 2, size=(20, 40), overlap=overlap)
    with open_c(library, path, backend="openvino", height=20, width=40, **cut) as c, python:
        same(c.sample(2, **given), python.sample(2, **given))


def test_a_whole_canvas_is_filled_in_to_the_bits_of_python(whole: Path, library: Library) -> None:
    images = np.random.default_rng(8).integers(0, 256, (2, 20, 40, IMAGE[0]), np.uint8)
    mask = np.zeros((20, 40), np.uint8)
    mask[4:12, 9:30] = 255
    given = {"seed": 5, "label": np.array([3, 10]), "style": np.ones((1, STYLE), np.float32), "steps": 3, "eta": 1.0}
    python = Sampler(whole, "openvino", "f32", 2, size=(20, 40))
    with open_c(library, whole, backend="openvino", height=20, width=40) as c, python:
        same(c.inpaint(images, mask, **given), python.inpaint(images, mask, **given))


@pytest.mark.parametrize("size", [(22, 40), (20, 2), (20, 10**15), (-4, 16)])
def test_a_whole_canvas_that_cannot_be(whole: Path, size: tuple[int, int], library: Library) -> None:
    """In Python's words."""
    with pytest.raises(Failed) as caught:
        open_c(library, whole, backend="openvino", height=size[0], width=size[1])
    with pytest.raises(ArgumentError) as expected:
        Sampler(whole, "openvino", size=size)
    assert str(expected.value) in str(caught.value)
    assert caught.value.status == ARGUMENT


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({"height": 21, "width": 40, "overlap": 0.5}, None),
        ({"height": 20, "width": 8, "overlap": 0.5}, None),
        ({"height": 20, "width": 10**15, "overlap": 0.5}, None),
        ({"height": -4, "width": 16, "overlap": 0.5}, None),
        ({"height": 20, "width": 40, "overlap": 0.95}, None),
        ({"height": 20, "width": 40}, None),
        ({"height": 20}, "found some of height, width and overlap, expected both height and width"),
        ({"overlap": 0.5}, "found some of height, width and overlap, expected both height and width"),
    ],
)
def test_a_size_that_cannot_be(canvas: Path, size: dict[str, Any], said: str | None, library: Library) -> None:
    """In Python's words, but where there are other options."""
    with pytest.raises(Failed) as caught:
        open_c(library, canvas, backend="openvino", **size)
    assert caught.value.status == ARGUMENT
    if said is None:
        with pytest.raises(ArgumentError) as expected:
            Sampler(canvas, "openvino", size=(size["height"], size["width"]), overlap=size.get("overlap"))
        said = str(expected.value)
    assert said in str(caught.value)


def test_a_bundle_that_sees_the_whole_picture_has_no_other_size(family: Path, library: Library) -> None:
    with pytest.raises(ArgumentError) as expected:
        Bundle.open(family).resized((20, 40), 0.5)
    with pytest.raises(Failed) as caught:
        open_c(library, family, backend="openvino", height=20, width=40, overlap=0.5)
    assert str(expected.value) in str(caught.value)


@pytest.mark.parametrize("run", ["noisy", "history", "on an interval"])
def test_quantised_steps_make_the_bits_of_python(tmp_path: Path, run: str, library: Library) -> None:
    path = build_family(tmp_path / "quantizes.bundle", quantizes=True)
    given = {"seed": 11, "label": np.array([3, 10, 0]), **RUNS[run]}
    seen: dict[str, list[bytes]] = {"c": [], "python": []}
    with open_c(library, path, backend="openvino") as c, Sampler(path, "openvino", "f32", 2) as python:
        plain = python.sample(3, **given)
        given["quantize_denoised"] = True
        batch = python.sample(3, **given, callback=lambda info: seen["python"].append(info.x0.tobytes()))
        found = c.sample(3, **given, callback=looking(lambda step: seen["c"].append(c.seen(step)[1].tobytes())))
        same(found, batch)
        same(c.sample(3, **given), batch)
        assert found.setting["quantize_denoised"]
    assert seen["c"] == seen["python"]
    assert (batch.x != plain.x).any()


def test_previews_are_decoded_as_in_python(family: Path, library: Library) -> None:
    given = {"seed": 11, "label": np.array([3, 10, 0]), **RUNS["guided"]}
    found: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    with open_c(library, family, backend="openvino") as c, Sampler(family, "openvino", "f32", 2) as python:
        batch = c.sample(3, **given, callback=looking(lambda step: found.append(c.preview(step))))
        same(batch, python.sample(3, **given, callback=lambda info: expected.append(info.images())))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[-1], batch.images)


@pytest.mark.parametrize(
    "given",
    [
        {"n": 3, "guidance": 1.5}, {"n": 10, "guidance": 1.5, "steps": 5}, {"n": 2}, {"n": 2, "variance": "fixedsmall"},
        {"n": 2, "method": "ddim", "eta": 0.5},
    ],
)  # fmt: skip
def test_a_learned_variance_makes_the_bits_of_python(tmp_path: Path, given: dict[str, Any], library: Library) -> None:
    path = build_family(tmp_path / "learned.bundle", learned=True)
    options = {"seed": 11, "label": np.array([3]), "method": "ddpm", **given}
    with open_c(library, path, backend="openvino") as c, Sampler(path, "openvino", "f32", 2) as python:
        n = options.pop("n")
        same(c.sample(n, **options), python.sample(n, **options))


def test_rows_of_a_learned_variance_are_those_of_python(tmp_path: Path, library: Library) -> None:
    path = build_family(tmp_path / "learned.bundle", learned=True)
    schedule = Bundle.open(path).manifest.schedule.schedule()
    with open_c(library, path, backend="openvino") as sampler:
        for options in ({"steps": n, "spacing": spacing} for n in (1, 2, 10, 1000) for spacing in ("linspace", "trailing")):
            expected = build_step_table(
                schedule, prediction="v", clip=None, method="ddpm", variance="learned_range", **options
            )
            assert sampler.table(method="ddpm", **options).rows.tobytes() == expected.rows.tobytes()


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_it_is_the_reference(family: Path, guidance: float, library: Library) -> None:
    rng, reference = np.random.default_rng(5), Reference()
    inputs = {
        "label": np.array([1, 9, 10]),
        "style": rng.standard_normal((3, STYLE)).astype(np.float32),
        "x_T": rng.standard_normal((3, *STATE)).astype(np.float32),
    }
    with open_c(library, family, backend="openvino") as sampler:
        found = sampler.sample(3, steps=6, spacing="trailing", guidance=guidance, **inputs)
    expected = reference.sample(found.timesteps.tolist(), **inputs, guidance=guidance)
    np.testing.assert_allclose(found.x, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.abs(found.images.astype(int) - reference.pixels(expected)).max() <= 1
    scale, shift = reference.modulation(inputs["label"], inputs["style"])
    np.testing.assert_allclose(found.values["scale"], scale, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(found.values["shift"], shift, rtol=TOLERANCE, atol=TOLERANCE)


def test_an_encoder_of_the_state_is_read_and_not_run(library: Library, tmp_path: Path) -> None:
    path = build_family(tmp_path / "latent.bundle", encodes=["state_encoder"])
    given: dict[str, Any] = {"seed": 3, "label": np.array([4]), "steps": 4, "spacing": "leading"}
    with open_c(library, path, backend="openvino") as c, Sampler(path, "openvino", "f32", 2) as python:
        same(c.sample(2, **given), python.sample(2, **given))


def test_chunks_and_one_label_for_all(family: Path, library: Library) -> None:
    given: dict[str, Any] = {"seed": 2**64 - 3, "label": np.array([4]), "steps": 4, "guidance": 1.0}
    opened = (open_c(library, family, backend="openvino", max_batch=size) for size in (2, 64))
    with next(opened) as small, next(opened) as large:
        cut, whole = small.sample(5, **given), large.sample(5, **given)
    assert (cut.timings.chunks, whole.timings.chunks) == (3, 1)
    np.testing.assert_allclose(cut.x, whole.x, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(cut.values["label"], [4] * 5)


def test_a_null_that_is_each_samples_own(library: Library, tmp_path: Path) -> None:
    path = build_family(tmp_path / "half.bundle", style_null=False)
    given = {"seed": 3, "label": np.array([3, 10, 0]), "steps": 5, "guidance": 1.5}
    with open_c(library, path, backend="openvino") as c, Sampler(path, "openvino", "f32", 2) as python:
        for n in (3, 3):
            same(c.sample(n, **given), python.sample(n, **given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "label"),
        ({"label": np.array([11])}, "label"),
        ({"label": np.array([[1]])}, "label"),
        ({"label": np.array([1, 2])}, "label"),
        ({"label": np.array([1]), "style": np.zeros((1, 4), np.float32)}, "style"),
        ({"label": np.array([1]), "style": np.full((1, 5), np.nan, np.float32)}, "style"),
        ({"label": np.array([1]), "t_start": 500}, "t_start"),
        ({"label": np.array([1]), "method": "plms"}, "plms"),
        ({"label": np.array([1]), "prior": "bundle"}, "prior"),
        ({"label": np.array([1]), "variance": "learned_range"}, "no second output .*; expected one of fixedlarge, fix"),
    ],
)
def test_bad_input_is_refused(family: Path, given: dict[str, Any], message: str, library: Library) -> None:
    with open_c(library, family, backend="openvino") as sampler:
        with pytest.raises(Failed, match=message) as refused:
            sampler.sample(3, **given)
        assert refused.value.status == ARGUMENT
        assert sampler.sample(1, label=np.array([1]), steps=2).images.shape == (1, *IMAGE[1:], IMAGE[0])
