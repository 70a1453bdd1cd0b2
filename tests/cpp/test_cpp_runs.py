"""Runs that are stopped, run in threads, and leave nothing behind. The C interface in its surroundings."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpp import capi
from tests.cpp.capi import BUSY, CANCELLED, Arguments, CSampler, Failed, Library, Step, looking, open_c
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE

SHORT: Arguments = {"steps": 2, "spacing": "linspace"}


@pytest.fixture(scope="module")
def bundle(native_bundle: Callable[..., Path]) -> Path:
    return native_bundle("form1")


@pytest.fixture
def sampler(library: Library, bundle: Path) -> Iterator[CSampler]:
    with open_c(library, bundle, max_batch=2) as opened:
        yield opened


def same(a: CSampler, b: CSampler, **given: Any) -> None:
    np.testing.assert_array_equal(a.sample(**given).images, b.sample(**given).images)


# ---- stopping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_callback_stops_the_run(step: int, sampler: CSampler) -> None:
    seen: list[int] = []

    def look(info: Step) -> bool:
        seen.append(info.step)
        return bool(info.step == step)

    message = rf"The callback stopped the run after step {step + 1} of 5 \(timestep [0-9]+\)\. No batch was made"
    with pytest.raises(Failed, match=message) as caught:
        sampler.sample(n=4, seed=0, steps=5, callback=looking(look))
    assert caught.value.status == CANCELLED
    assert seen == list(range(step + 1))
    assert len(sampler.sample(n=4, seed=0, steps=5).images) == 4


def test_cancel_from_another_thread(sampler: CSampler) -> None:
    steps: list[int] = []
    started = threading.Event()

    def look(info: Step) -> None:
        steps.append(info.step)
        started.set()
        time.sleep(0.01)

    def cancel() -> None:
        assert started.wait(30)
        sampler.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Failed, match=r"diffusevae_cancel stopped the run before step [0-9]+ of 1000") as caught:
        sampler.sample(n=1, seed=0, steps=1000, callback=looking(look))
    thread.join()
    assert caught.value.status == CANCELLED
    assert len(steps) < 500
    assert len(sampler.sample(seed=0, **SHORT).images) == 1


def test_cancel_without_a_callback(sampler: CSampler) -> None:
    answers: list[int] = []

    def run() -> None:
        try:
            sampler.sample(n=2000, seed=0, steps=1000)
        except Failed as error:
            answers.append(error.status)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 60
    while thread.is_alive() and time.monotonic() < deadline:  # a cancel before the run began has no effect
        sampler.cancel()
        thread.join(0.02)
    assert answers == [CANCELLED]


def test_cancel_below_the_callback(sampler: CSampler) -> None:
    seen: list[int] = []

    def look(info: Step) -> None:
        seen.append(info.step)
        sampler.cancel()

    with pytest.raises(Failed, match="diffusevae_cancel stopped the run before step 2 of 5"):
        sampler.sample(seed=0, steps=5, callback=looking(look))
    assert seen == [0]


def test_cancel_while_nothing_runs_has_no_effect(sampler: CSampler) -> None:
    sampler.cancel()
    assert len(sampler.sample(seed=0, **SHORT).images) == 1


def test_cancel_after_the_last_step_has_no_effect(sampler: CSampler) -> None:
    def look(info: Step) -> None:
        if info.step == info.steps - 1:
            sampler.cancel()

    assert len(sampler.sample(seed=0, **SHORT, callback=looking(look)).images) == 1
    # Two chunks: the second one has not begun, and does not.
    with pytest.raises(Failed, match="diffusevae_cancel stopped the run before step 1 of 2"):
        sampler.sample(n=3, seed=0, **SHORT, callback=looking(look))


def test_more_images_than_any_memory_holds_can_be_begun(sampler: CSampler) -> None:
    """Without arrays for results nothing grows with n."""
    options, alive = sampler.options({"n": 2**63 - 1, "seed": 0, **SHORT, "callback": looking(lambda info: info.first == 4)})
    result = sampler.library.made(capi.Result, "result")
    with pytest.raises(Failed, match="The callback stopped the run after step 1 of 2"):
        sampler.library.call("sample", sampler.handle, ctypes.byref(options), ctypes.byref(result))
    del alive


# ---- threads -------------------------------------------------------------------------------------------


def test_a_second_call_is_answered_busy(sampler: CSampler) -> None:
    inside, answered = threading.Event(), threading.Event()
    answers: list[Failed] = []

    def again() -> None:
        try:
            sampler.sample(seed=0, **SHORT)
        except Failed as error:
            answers.append(error)

    def elsewhere() -> None:
        assert inside.wait(30)
        again()
        answered.set()

    def look(info: Step) -> None:
        again()  # below the callback, in the same thread
        inside.set()
        assert answered.wait(30)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    batch = sampler.sample(seed=0, steps=1, spacing="linspace", callback=looking(look))
    thread.join()
    assert [error.status for error in answers] == [BUSY, BUSY]
    assert all(re.search("This sampler is running already.*diffusevae_clone", str(error)) for error in answers)
    assert len(batch.images) == 1
    assert len(sampler.sample(seed=0, **SHORT).images) == 1


def test_what_may_be_called_during_a_run(sampler: CSampler) -> None:
    seen: list[int] = []

    def look(info: Step) -> None:
        with sampler.clone() as twin:
            seen.append(len(twin.sample(seed=1, **SHORT).images))
        seen.append(len(sampler.table(**SHORT).rows))

    sampler.sample(seed=0, steps=1, spacing="linspace", callback=looking(look))
    assert seen == [1, 2]


def test_clones_in_threads(sampler: CSampler) -> None:
    expected = {seed: sampler.sample(n=3, seed=seed, steps=3, spacing="linspace").images for seed in range(6)}
    found: dict[int, np.ndarray] = {}
    errors: list[Failed] = []

    def work(own: CSampler, seeds: list[int]) -> None:
        try:
            for _ in range(3):
                for seed in seeds:
                    found[seed] = own.sample(n=3, seed=seed, steps=3, spacing="linspace").images
        except Failed as error:
            errors.append(error)

    clones = [sampler.clone() for _ in range(2)]
    threads = [threading.Thread(target=work, args=(own, [2 * i, 2 * i + 1])) for i, own in enumerate([sampler, *clones])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for clone in clones:
        clone.free()
    assert not errors
    assert found.keys() == expected.keys()
    for seed, images in expected.items():
        np.testing.assert_array_equal(found[seed], images)


def test_a_clone_outlives_what_it_was_made_from(library: Library, bundle: Path) -> None:
    first = open_c(library, bundle, precision="bf16")
    expected = first.sample(n=2, seed=3, **SHORT).images
    second = first.clone()
    third = second.clone()
    first.free()
    second.free()
    assert third.info.weight_bytes > 0
    np.testing.assert_array_equal(third.sample(n=2, seed=3, **SHORT).images, expected)
    third.free()


def test_one_clones_cancel_leaves_the_others_alone(sampler: CSampler) -> None:
    with sampler.clone() as twin:
        batch = sampler.sample(seed=0, **SHORT, callback=looking(lambda info: twin.cancel()))
        assert len(batch.images) == 1


def test_a_forked_child_samples(sampler: CSampler) -> None:
    expected = sampler.sample(n=2, seed=5, **SHORT).images.tobytes()
    child = os.fork()
    if child == 0:  # no assertion and no fixture may end in the child
        good = sampler.sample(n=2, seed=5, **SHORT).images.tobytes() == expected
        with sampler.clone() as twin:
            good = good and twin.sample(n=2, seed=5, **SHORT).images.tobytes() == expected
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert sampler.sample(n=2, seed=5, **SHORT).images.tobytes() == expected


# ---- what is left behind ---------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def test_memory_is_flat_over_many_runs(sampler: CSampler) -> None:
    def run(times: int) -> None:
        for i in range(times):
            given: Arguments = {"n": 1 + i % 3, "seed": i, "steps": 1 + i % 2, "spacing": "linspace"}
            given["guidance"] = 0.5 * (i % 2)
            sampler.sample(**given)
            if i % 10 == 0:
                with pytest.raises(Failed):
                    sampler.sample(**{**given, "steps": 0})
                with pytest.raises(Failed):
                    sampler.sample(**given, callback=looking(lambda info: True))

    run(50)
    gc.collect()
    before = resident()
    run(500)
    gc.collect()
    assert resident() - before < 2**20


def test_opening_leaves_nothing_behind(library: Library, bundle: Path, tmp_path: Path) -> None:
    def cycle() -> None:
        with open_c(library, bundle) as opened, opened.clone() as twin:
            same(opened, twin, seed=0, **SHORT)
        with pytest.raises(Failed, match="int8"):  # after the table's program was opened, before the denoiser's
            open_c(library, bundle, precision="int8")
        with pytest.raises(Failed) as caught:
            open_c(library, tmp_path / "nothing")
        assert caught.value.status == capi.BUNDLE

    cycle()
    gc.collect()
    before, files, threads = resident(), descriptors(), tasks()
    for _ in range(20):
        cycle()
    gc.collect()
    assert (descriptors(), tasks()) == (files, threads)
    assert resident() - before < 4 * 2**20


def test_timings(sampler: CSampler) -> None:
    batch = sampler.sample(n=3, seed=0, steps=4, spacing="linspace", guidance=0.5)
    timings = batch.timings
    assert (timings.chunks, timings.network_calls) == (2, 8)
    assert len(batch.step_ms) == 4
    assert (batch.step_ms > 0).all()
    assert batch.step_ms.sum() == pytest.approx(timings.network_ms)
    assert batch.step_ms[0] == pytest.approx(timings.first_step_ms)
    stages = ("before", "rows", "noise", "network", "update", "after", "post")
    parts = [getattr(timings, f"{name}_ms") for name in stages]
    assert min(parts) >= 0
    assert 0.5 * timings.total_ms < sum(parts) <= timings.total_ms


def test_the_callbacks_own_pointer(sampler: CSampler) -> None:
    got: list[tuple[int, int]] = []
    options = sampler.library.made(capi.SampleOptions, "sample_options")

    def look(step: Any, user: int) -> int:
        got.append((step.contents.size, user))
        return 0

    callback = capi.CALLBACK(look)
    options.callback, options.user, options.steps, options.spacing = callback, 4711, 1, b"linspace"
    result = sampler.library.made(capi.Result, "result")
    sampler.library.call("sample", sampler.handle, ctypes.byref(options), ctypes.byref(result))
    assert got == [(ctypes.sizeof(capi.Step), 4711)]
