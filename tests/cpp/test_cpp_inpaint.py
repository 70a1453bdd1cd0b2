"""Images with a hole in C++: the bits of Python on the same backend, and the same refusals."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import EngineError, Sampler
from tests.cpp import building, capi
from tests.cpp.capi import Arguments, CBatch, CSampler, Failed, Library, looking, open_c
from tests.cpp.test_cpp_equal import assert_same
from tests.cpp.test_cpp_steps import plain
from tests.native_models import NEEDS_NATIVE
from tests.toy_family import IMAGE, STATE, build_family

Pair = tuple[Sampler, CSampler]
RNG = np.random.default_rng(6)
PHOTOS = RNG.integers(0, 256, (3, *IMAGE[1:], IMAGE[0]), np.uint8)
HOLE = np.zeros(IMAGE[1:], np.uint8)
HOLE[3:8, 4:10] = 255
SOFT = RNG.choice([0.0, 0.5, 1.0], (3, 1, *IMAGE[1:])).astype(np.float32)
RUNS: dict[str, Arguments] = {
    "recorded": {},
    "noise of the steps": {"steps": 4, "method": "ddpm"},
    "rows that begin again": {"steps": 4, "method": "plms"},
    "from the noised start": {"steps": 3, "t_start": 400, "eta": 1.0},
    "history, unclipped": {"steps": 4, "method": "dpmpp_2m", "clip": False},
}


def check(pair: Pair, images: np.ndarray, masks: np.ndarray, **given: Any) -> CBatch:
    """What C++ makes, once it is what Python makes."""
    ours, theirs = pair
    found = theirs.inpaint(images, masks, **given)
    assert_same(ours.inpaint(images, masks, **given), found)
    return found


# ---- the native engine ---------------------------------------------------------------------------------


@NEEDS_NATIVE
def test_every_way_through_the_loop(native: Pair) -> None:
    _, theirs = native
    channels, height, width = theirs.info.state
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (3, height, width, channels), np.uint8)
    soft = rng.choice([0.0, 0.5, 1.0], (3, 1, height, width)).astype(np.float32)
    hard = np.where(soft[0, 0] > 0, np.uint8(128), np.uint8(127))
    runs = [*RUNS.values(), *([{"steps": 4, "guidance": 0.5}] if theirs.info.guided else [])]
    for run in runs:
        check(native, images, soft, seed=2**64 - 2, **run)
    unit = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    for masks in (hard, hard[None], hard[None, ..., None], soft[:1], soft[0]):  # one for all
        check(native, unit, masks, seed=[5, 5, 7], steps=2, composite=False)
    check(native, images[0], soft[0], seed=3, steps=2)
    noise = rng.standard_normal((2, 3, *theirs.info.state), np.float32)
    given = check(native, images, soft, seed=3, steps=2, known_noise=noise, composite=False)
    assert given.x.tobytes() != theirs.inpaint(images, soft, seed=3, steps=2, composite=False).x.tobytes()
    check(native, images, soft, seed=3, steps=2, known_noise=noise[:, :1], x_T=noise[0], noise=noise, eta=1.0)


@NEEDS_NATIVE
def test_what_is_known_and_what_is_not(native: Pair) -> None:
    _, theirs = native
    channels, height, width = theirs.info.state
    images = np.random.default_rng(4).integers(0, 256, (3, height, width, channels), np.uint8)
    none, whole = np.zeros((height, width), np.uint8), np.full((height, width), 255, np.uint8)
    known = theirs.inpaint(images, none, seed=1, steps=2)
    np.testing.assert_array_equal(known.images, images)
    free = theirs.inpaint(images, whole, seed=1, steps=2)
    encoded = {name: free.values[name] for name in theirs.inputs}
    assert free.images.tobytes() == theirs.sample(3, seed=1, steps=2, **encoded).images.tobytes()
    seen: list[bytes] = []
    with theirs.clone() as twin:
        watch = looking(lambda step: seen.append(twin.seen(step)[0].tobytes()))
        again = twin.inpaint(images, none, seed=1, steps=2, callback=watch)
    assert again.x.tobytes() == known.x.tobytes() == seen[1] + seen[3]


# ---- other runtimes and families -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtimes(cpp_runtimes: Path) -> Library:
    return Library(cpp_runtimes / "diffusevae" / building.LIBRARY)


LATENT = "a state that is encoded"
FAMILIES: dict[str, Arguments] = {
    LATENT: {"encodes": ["state_encoder"], "draws": False},
    "state and input, quantised": {"encodes": ["image_encoder", "state_encoder"], "quantizes": True},
    "pictures": {"encodes": [], "pictures": ["photo", "mask"]},
    "no way": {},
}


@pytest.fixture(scope="module")
def families(runtimes: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    """families(kind): the bundle opened from Python and from C, once."""
    opened: dict[str, Pair] = {}

    def get(kind: str) -> Pair:
        if kind not in opened:
            path = build_family(tmp_path_factory.mktemp("family") / "toy.bundle", **FAMILIES[kind])
            theirs = open_c(runtimes, path, backend="openvino", max_batch=2)
            opened[kind] = Sampler(path, "openvino", "f32", threads=2, max_batch=2), theirs
        return opened[kind]

    yield get
    for ours, theirs in opened.values():
        ours.close()
        theirs.free()


def test_a_state_that_is_encoded(families: Callable[[str], Pair]) -> None:
    given: Arguments = {"label": np.array([3]), "style": np.full((1, 5), 0.25, np.float32), "seed": 8, "steps": 4}
    pair = families(LATENT)
    for more in ({}, {"guidance": 1.5, "eta": 0.5}, {"t_start": 500, "steps": 3}, {"known_noise": noise_of(4)}):
        check(pair, PHOTOS, SOFT, **{**given, **more})
    check(pair, PHOTOS, HOLE, **given, composite=False)


def noise_of(rows: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((rows, 1, *STATE), np.float32)


def test_state_and_input_are_encoded_and_steps_quantised(families: Callable[[str], Pair]) -> None:
    pair = families("state and input, quantised")
    found = check(pair, PHOTOS, SOFT, label=np.array([3]), seed=8, steps=4, quantize_denoised=True)
    check(pair, PHOTOS, SOFT, label=np.array([3]), seed=8, steps=2, style=found.values["style"][::-1])


def test_a_network_that_takes_image_and_mask(families: Callable[[str], Pair]) -> None:
    pair = families("pictures")
    for masks in (SOFT, HOLE):
        check(pair, PHOTOS, masks, label=np.array([3]), seed=8, steps=3, guidance=0.5)
    check(pair, PHOTOS, HOLE, label=np.array([3]), seed=8, steps=3, composite=False)


# ---- refusals ------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Arguments, ...]] = {
    LATENT: (
        {"images": PHOTOS[:, :6]}, {"images": PHOTOS[..., 0]}, {"images": np.zeros((3, 3, 6, 16), np.float32)},
        {"images": np.full((3, *IMAGE), 1.00049, np.float32)}, {"images": np.full((1, *IMAGE), np.nan, np.float32)},
        {"masks": HOLE[:6]}, {"masks": HOLE.astype(np.float32)}, {"masks": HOLE // 255}, {"masks": SOFT[:2]},
        *({"masks": np.full((1, 1, 12, 16), value, np.float32)} for value in (np.inf, -0.5, 1.00001)),
        {"known_noise": noise_of(3)}, {"known_noise": np.repeat(noise_of(4), 2, 1)}, {"x_T": noise_of(2)[:, 0]},
        {"n": 3}, {"budget_ms": 9.0}, {"at_most": True}, {"anytime": True}, {"prior": "standard"},
    ),
    "pictures": ({"photo": np.zeros((1, *IMAGE), np.float32), "known_noise": noise_of(4)},),
    "no way": ({},),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_are_those_of_python(kind: str, families: Callable[[str], Pair]) -> None:
    ours, theirs = families(kind)
    for changes in REFUSED[kind]:
        asked: Arguments = {"images": PHOTOS, "masks": HOLE, "label": np.array([3]), "seed": 1, "steps": 4}
        asked |= {"style": np.zeros((1, 5), np.float32)} if "style" in theirs.inputs else {}
        with pytest.raises(EngineError) as expected:
            ours.inpaint(**asked | changes)
        with pytest.raises(Failed) as found:
            theirs.inpaint(**asked | changes)
        assert found.value.status == capi.ARGUMENT
        assert words(found.value) == words(expected.value)
    assert len(theirs.sample(1, label=np.array([3]), steps=2, **given_of(theirs)).images) == 1


def given_of(sampler: CSampler) -> Arguments:
    shapes = {"style": (1, 5), "photo": (1, *IMAGE), "mask": (1, 1, *IMAGE[1:])}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name in sampler.inputs}


def words(error: Exception) -> str:
    """A refusal apart from what only Python or only C has: dtypes, and how a number is written."""
    text = str(error).removeprefix("ARGUMENT: ")
    for own in (" in float32", "bool, or "):
        text = text.replace(own, "")
    return plain(text.replace("or float [", "or float32 ["))


def test_what_only_c_can_get_wrong(families: Callable[[str], Pair]) -> None:
    _, theirs = families(LATENT)
    given = given_of(theirs) | {"label": np.array([3])}
    with pytest.raises(Failed, match="composite is 2; expected 0 or 1"):
        theirs.inpaint(PHOTOS, HOLE, composite=2, **given)
    with pytest.raises(Failed, match=r"known_noise has shape \[4, 1, 4, 8, 6\]; expected float32 \[steps, N, 4, 6, 8\]"):
        theirs.inpaint(PHOTOS, HOLE, known_noise=noise_of(4).swapaxes(3, 4), **given)
    for message, name, dtype, function in (
        ("inputs has an array 'maks', .* it takes label .* Did you mean 'masks'", "maks", np.float32, "inpaint"),
        ("inpaint: found no images among inputs; expected images and masks", "x_T", np.float32, "inpaint"),
        (r"images has dtype int64 \(2\); expected uint8 \[N, 12, 16, 3\] or", "images", np.int64, "inpaint"),
        ("inputs has an array 'images', and this bundle has no such input", "images", np.float32, "sample"),
    ):
        array = capi.Array.of(name, np.zeros((1, *STATE), dtype))
        options = theirs.library.made(capi.SampleOptions, "sample_options")
        result = theirs.library.made(capi.Result, "result")
        options.inputs, options.inputs_count = (capi.Array * 1)(array), 1
        more = (1,) if function == "inpaint" else ()
        with pytest.raises(Failed, match=message):
            theirs.library.call(function, theirs.handle, ctypes.byref(options), *more, ctypes.byref(result))
