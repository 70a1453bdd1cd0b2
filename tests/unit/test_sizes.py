"""A size a call: the bits of a Sampler of that size, a bounded number of them, and what is refused before it is loaded."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, BackendError, Sampler, memory
from engine.backends.onnxruntime import OnnxRuntime
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from engine.errors import HostMemoryError, SamplerStateError
from tests.canvases import GIVEN, SIZE
from tests.native_models import NEEDS_NATIVE
from tests.processes import forked
from tests.toy_family import IMAGE, build_family

OTHERS = ((4, 24), (24, 8), (28, 4))
INPUTS: dict[str, Any] = {name: value for name, value in GIVEN.items() if name != "seed"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes") / "b"
    build_family(folder, encodes=["state_encoder"], multiple=2)
    write_fitted(folder, [as_defaults({"timesteps": [900, 600, 300]})], {})
    return folder


@pytest.fixture
def sampler(bundle: Path) -> Iterator[Sampler]:
    with Sampler(bundle, "onnxruntime", "f32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def large(bundle: Path) -> Iterator[Sampler]:
    with Sampler(bundle, "onnxruntime", "f32", threads=1, size=SIZE) as opened:
        yield opened


def kept(sampler: Sampler) -> list[tuple[int, int]]:
    """The sizes that a Sampler holds ready, the last used at the end."""
    return list(sampler._sizes._sized)


IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
MASK = np.zeros((1, *SIZE), bool)
MASK[:, 5:, 20:] = True
VERBS: dict[str, Callable[..., Any]] = {
    "sample": lambda s, **size: s.sample(2, **GIVEN, steps=3, eta=1.0, **size).images,
    "interpolate": lambda s, **size: s.interpolate(1, 5, 4, label=3, steps=2, part=(1, 3), **size).images,
    "refine": lambda s, **size: s.refine(IMAGES, **GIVEN, t_start=300, steps=2, **size).images,
    "reconstruct": lambda s, **size: s.reconstruct(IMAGES, **size).images,
    "inpaint": lambda s, **size: s.inpaint(IMAGES, MASK, **GIVEN, steps=2, **size).images,
    "encode": lambda s, **size: s.encode(IMAGES, **size)["x"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_has_the_bits_of_a_sampler_of_its_size(sampler: Sampler, large: Sampler, verb: str) -> None:
    found = VERBS[verb](sampler, size=SIZE)
    np.testing.assert_array_equal(found, VERBS[verb](large))
    assert kept(sampler) == [SIZE]


def test_an_upscaler_takes_a_size_too(tmp_path: Path) -> None:
    """In tiles; the picture that this one takes is of one size."""
    made = build_family(tmp_path / "b", encodes=["state_encoder"], pictures=["photo"])
    photo = IMAGES[0, : IMAGE[1], : IMAGE[2]]
    with Sampler(made, "onnxruntime", "f32", threads=1, size=(24, 32), overlap=0.5) as opened:
        found = opened.upscale(photo, label=1, seed=2, steps=2, size=SIZE)
        with opened.resized(SIZE, overlap=0.5) as expected:
            np.testing.assert_array_equal(found.images, expected.upscale(photo, label=1, seed=2, steps=2).images)


def test_its_own_size_is_the_sampler_itself(sampler: Sampler, large: Sampler) -> None:
    """Also of one that is of another size than its bundle, and as a list."""
    for opened in (sampler, large):
        height, width = opened.bundle.manifest.pipeline.image_shape[1:]
        same = opened.sample(**GIVEN, steps=2, size=[height, width])  # type: ignore[arg-type]
        np.testing.assert_array_equal(same.x, opened.sample(**GIVEN, steps=2).x)
        assert kept(opened) == []
    with large.clone() as twin:
        back = twin.sample(**GIVEN, steps=2, size=IMAGE[1:])
    np.testing.assert_array_equal(back.x, sampler.sample(**GIVEN, steps=2).x)


def test_the_size_that_was_not_used_for_longest_is_closed(sampler: Sampler) -> None:
    first, second, third = OTHERS
    expected = sampler.sample(**GIVEN, steps=2, size=first).x
    sampler.sample(**GIVEN, steps=2, size=second)
    graphs = {size: sampler._sizes._sized[size].pipeline.backend.graph("denoiser") for size in (first, second)}
    sampler.sample(**GIVEN, steps=2, size=first)
    assert sampler._sizes._sized[first].pipeline.backend.graph("denoiser") is graphs[first], "loaded again"
    sampler.sample(**GIVEN, steps=2, size=third)
    assert kept(sampler) == [first, third]
    assert [graphs[size]._closed for size in (first, second)] == [False, True]
    sampler.sample(**GIVEN, steps=2, size=second)
    np.testing.assert_array_equal(sampler.sample(**GIVEN, steps=2, size=first).x, expected)
    sampler.close()
    assert graphs[first]._closed
    assert kept(sampler) == []


def test_how_many_are_kept(bundle: Path) -> None:
    with Sampler(bundle, "onnxruntime", "f32", threads=1, sizes=1) as opened:
        for size in OTHERS:
            opened.sample(**GIVEN, steps=2, size=size)
            assert kept(opened) == [size]
        with pickle.loads(pickle.dumps(opened)) as again, opened.clone() as twin, opened.resized(SIZE) as resized:
            assert kept(twin) == kept(again) == kept(resized) == [], "each has its own"
            assert {one._sizes.kept for one in (again, twin, resized)} == {1}
            twin.sample(**GIVEN, steps=2, size=OTHERS[0])
            assert kept(opened) == [OTHERS[-1]]
    for wrong, said in ((0, "sizes is 0; expected at least 1"), (1.5, "sizes is 1.5, a float; expected an integer")):
        with pytest.raises(ArgumentError, match=said):
            Sampler(bundle, "onnxruntime", "f32", threads=1, sizes=wrong)  # type: ignore[arg-type]


def test_one_call_at_a_time_whatever_its_size(sampler: Sampler) -> None:
    said = []

    def again(_: Any) -> None:
        with pytest.raises(SamplerStateError, match="running already") as refused:
            sampler.sample(**GIVEN, size=SIZE)
        said.append(str(refused.value))

    sampler.sample(**GIVEN, steps=2, size=SIZE, callback=again)
    assert len(said) == 2
    sampler.close()
    with pytest.raises(SamplerStateError, match="closed"):
        sampler.sample(**GIVEN, size=SIZE)


def test_what_has_no_room_is_refused_before_anything_is_loaded(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler.sample(**GIVEN, steps=2, size=OTHERS[0])
    monkeypatch.setattr(OnnxRuntime, "load", lambda *_: pytest.fail("a graph was loaded"))
    monkeypatch.setattr(memory, "available", lambda: 40 << 20)
    for given in ({"n": 9000, **GIVEN}, {**GIVEN, "seed": range(9000)}):
        with pytest.raises(HostMemoryError, match=r"found 9000 images of 20 x 40, .* expected at most the 0.0 GiB"):
            sampler.sample(**given, size=SIZE)  # type: ignore[arg-type]
    with pytest.raises(HostMemoryError, match="found 9000 images"):
        sampler.refine(np.broadcast_to(IMAGES[:1], (9000, *SIZE, 3)), t_start=300, **INPUTS, size=SIZE)
    assert kept(sampler) == [OTHERS[0]], "what was there stays"


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((22, 40), "height of 22, expected a multiple of 4 from 4 to 65536; the nearest is 24"),
        ((20,), "size lists 1 numbers; expected two"),
        ("20x40", "size is '20x40', a str; expected a list of integers"),
        ((20, 40.0), r"size\[1\] is 40.0, a float"),
    ],
)
def test_a_size_that_cannot_be(sampler: Sampler, size: Any, said: str) -> None:
    sampler.sample(**GIVEN, steps=2, size=OTHERS[0])
    with pytest.raises(ArgumentError, match=said):
        sampler.sample(**GIVEN, size=size)
    assert kept(sampler) == [OTHERS[0]]


def test_plans_of_one_size_take_no_other(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "ANY_SIZE", False)
    with pytest.raises(BackendError, match="whose plans take 12 x 16 alone"):
        sampler.sample(**GIVEN, size=SIZE)


def test_tiles_stay_tiles(bundle: Path) -> None:
    with Sampler(bundle, "onnxruntime", "f32", threads=1, size=(24, 32), overlap=0.5) as tiled:
        found = tiled.sample(**GIVEN, steps=2, size=SIZE)
        assert tiled._sizes._sized[SIZE].pipeline.bundle.resizing == (SIZE, 0.5)
        with tiled.resized(SIZE, overlap=0.5) as expected:
            np.testing.assert_array_equal(found.x, expected.sample(**GIVEN, steps=2).x)


def test_budgets_are_measured_in_the_size_of_the_call(sampler: Sampler) -> None:
    found = sampler.sample(**GIVEN, budget_ms=60_000, size=SIZE)
    assert found.deadline is not None
    assert found.images.shape == (1, *SIZE, 3)
    assert sampler._deadlines.times == {}, "of another size"
    assert len(sampler._sizes._sized[SIZE].deadlines.times) == 1


def test_warming_up_makes_a_size_ready(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler.warmup(2, size=SIZE, **INPUTS)
    monkeypatch.setattr(OnnxRuntime, "load", lambda *_: pytest.fail("a graph was loaded"))
    assert sampler.sample(**GIVEN, steps=2, size=SIZE).images.shape == (1, *SIZE, 3)


def test_verbs_without_other_sizes_say_so(sampler: Sampler) -> None:
    with pytest.raises(ArgumentError, match="sample_on_device has no option 'size'"):
        sampler.sample_on_device(**GIVEN, size=SIZE)


@NEEDS_NATIVE
def test_native_plans_share_their_weights_and_a_child_has_them(native_bundle: Callable[..., Path]) -> None:
    with Sampler(native_bundle("uncond"), "native", "bf16", threads=2) as opened:
        height, width = opened.bundle.manifest.pipeline.image_shape[1:]
        size = height, 2 * width
        found = opened.sample(2, seed=1, steps=2, size=size)
        own, other = (one.backend.graph("denoiser") for one in (opened._pipeline, opened._sizes._sized[size].pipeline))
        assert other._loaded.weights is own._loaded.weights  # type: ignore[attr-defined]
        with opened.resized(size) as resized:
            np.testing.assert_array_equal(resized.sample(2, seed=1, steps=2).x, found.x)
        said = forked(lambda: opened.sample(2, seed=1, steps=2, size=size).x.tobytes().hex())
        assert said == found.x.tobytes().hex()
