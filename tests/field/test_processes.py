"""Processes as they really are: seeds, pickles, copies, forks, signals, and a library that cannot be loaded."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from engine.errors import ArgumentError, BundleError, EngineError
from engine.kernels import native_library
from engine.kernels.loader import LIBRARY, open_library
from engine.solver.noise import resolve_seeds
from tests.native_models import NEEDS_NATIVE
from tests.processes import SETTING, forked, images_of

BACKENDS = [pytest.param("native", marks=NEEDS_NATIVE), "onnxruntime", "openvino"]


class Index:
    """An integer of a caller's own kind."""

    def __index__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "Index()"  # no address: the test has the same name in every process


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (7, [7]), (2**64 - 1, [2**64 - 1]), (np.int8(7), [7]), (np.uint64(2**64 - 1), [2**64 - 1]), (np.array(7), [7]),
        (np.array(7, np.uint8), [7]), (Index(), [7]), ([7, np.int16(0)], [7, 0]), ((np.array(7), Index()), [7, 7]),
        (range(2), [0, 1]), (np.array([7, 9], np.uint32), [7, 9]), (np.array([7, 9], object), [7, 9]),
        (True, None), (np.True_, None), (np.array(True), None), ([True], None), (np.array([True]), None), (7.0, None),
        (np.float32(7), None), (np.array(7.0), None), ([7.0], None), ("7", None), ({7}, None), ({7: 7}, None),
        ([[7]], None), (np.array([[7]]), None), (-1, None), (2**64, None),
    ],
    ids=repr,
)  # fmt: skip
def test_seeds_of_every_kind(seed: Any, expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(ArgumentError, match=r"^seed is .*expected"):
            resolve_seeds(seed)
    else:
        assert resolve_seeds(seed).tolist() == expected


def test_seeds_go_on_from_zero_after_the_last() -> None:
    assert resolve_seeds(2**64 - 1, 3).tolist() == [2**64 - 1, 0, 1]


@pytest.fixture(params=BACKENDS)
def sampler(request: pytest.FixtureRequest, native_bundle: Callable[..., Path]) -> Any:
    with Sampler(native_bundle("form1"), request.param, threads=2) as opened:
        yield opened


def test_a_child_of_fork_has_the_same_images_or_is_told_what_does(sampler: Sampler) -> None:
    expected = sampler.sample(2, **SETTING).images.tobytes()

    def go_on() -> str:
        return "same" if sampler.sample(2, **SETTING).images.tobytes() == expected else "other"

    def again() -> str:
        sampler.close()
        with Sampler(sampler.bundle.path, sampler.backend, threads=2) as opened:
            return "same" if opened.sample(2, **SETTING).images.tobytes() == expected else "other"

    said, said_again = forked(go_on), forked(again)
    cure = {"onnxruntime": "open the bundle again here", "openvino": "such as native or onnxruntime"}
    assert said == "same" if sampler.backend == "native" else cure[sampler.backend] in said
    assert said_again == "same" if sampler.backend != "openvino" else cure["openvino"] in said_again
    assert go_on() == "same", "the parent is untouched"


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_a_child_without_openvino_has_another_backend(backend: str, native_bundle: Callable[..., Path]) -> None:
    path = native_bundle("form1")

    def images(name: str) -> bytes:
        with Sampler(path, name, threads=2) as opened:
            return opened.sample(2, **SETTING).images.tobytes()

    expected = images(backend)
    images("openvino")
    assert forked(lambda: "same" if images(backend) == expected else "other") == "same"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_gives_the_same_images(sampler: Sampler, duplicate: Callable[[Sampler], Sampler]) -> None:
    with duplicate(sampler) as twin:
        assert (twin.backend, twin.precision, twin.threads) == (sampler.backend, sampler.precision, sampler.threads)
        np.testing.assert_array_equal(twin.sample(2, **SETTING).images, sampler.sample(2, **SETTING).images)


@pytest.mark.parametrize("pool", ["spawn", "loky"])
def test_a_worker_that_is_given_a_sampler_makes_the_same_images(pool: str, native_bundle: Callable[..., Path]) -> None:
    with Sampler(native_bundle("form1"), threads=1) as sampler:
        expected = images_of(sampler)
        if pool == "spawn":
            with multiprocessing.get_context("spawn").Pool(1) as workers:
                found = workers.apply_async(images_of, [sampler]).get(timeout=120)
        else:
            joblib = pytest.importorskip("joblib")
            found, _ = joblib.Parallel(n_jobs=2, backend="loky", timeout=120)(
                joblib.delayed(images_of)(sampler) for _ in range(2)
            )
    assert found == expected


def test_a_pickle_notices_another_bundle(native_bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    shutil.copytree(native_bundle("form1"), path)
    with Sampler(path, "onnxruntime", threads=1) as sampler:
        kept = pickle.dumps(sampler)
    manifest = path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(BundleError, match=r"expected .* as when the Sampler was pickled"):
        pickle.loads(kept)


def test_an_interrupt_ends_a_run_and_the_sampler_serves_on(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def raises(*_: object) -> None:
        raise Enough

    monkeypatch.setattr(native_library, "SLICE_MS", 1e-3)
    expected = sampler.sample(2, **SETTING).images
    before = signal.signal(signal.SIGINT, raises)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(Enough):
            sampler.sample(1024, seed=7, steps=1000, spacing="linspace")
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_array_equal(sampler.sample(2, **SETTING).images, expected)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "it is cut short"),
        (lambda data: data[:18] + b"\xf3\x00" + data[20:], "it was compiled for riscv64"),
        (lambda data: b"", "is not a kernel library"),
    ],
    ids=["cut short", "of another processor", "empty"],
)
@pytest.mark.skipif(not LIBRARY.exists(), reason="the kernels are not compiled here")
def test_a_library_that_cannot_be_loaded_is_a_sentence(tmp_path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    path = tmp_path / "_kernels.so"
    path.write_bytes(damage(LIBRARY.read_bytes()))
    with pytest.raises(EngineError, match=rf"{words}.*pip install"):
        open_library(path)
