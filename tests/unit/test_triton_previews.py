"""A served model with previews: a response a step, the last of them the answer; the same bits as without."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import StepInfo
from tests.fake_triton import Request, TritonError
from tests.samplers import ANY_BACKEND, CountingGraph, watch_graph
from tests.toy_family import build_family
from tests.triton_models import CHOSEN, Served, floats, int32, ints, loading

ALL = ("image", "step", "timestep", "final")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("previews")
    family = build_family(folder / "latents.bundle", backends=(ANY_BACKEND,))
    with loading(folder) as start:
        yield start(family, dataclasses.replace(CHOSEN, previews=True))


def expected(model: Served, **options: Any) -> tuple[list[np.ndarray], Any]:
    """Each step's preview, and the batch."""
    shown: list[np.ndarray] = []

    def look(info: StepInfo) -> None:
        shown.append(info.images())

    return shown, model.sampler.sample(callback=look, **options)


def test_one_response_a_step_and_the_answer_last(model: Served) -> None:
    counting: CountingGraph = watch_graph(model.sampler)
    options = {"steps": int32(4, 4), "guidance": floats(0.5, 0.5)}
    watching = Request(ALL, seed=ints(7, 9), label=ints(3, 4), **options)
    unnamed = Request([*ALL, "style"], seed=ints(1, 2), label=ints(3, 5), **options)
    waiting = Request(["image"], seed=ints(7, 9), label=ints(3, 4), **options)
    model.answer(watching, waiting, unnamed)
    assert counting.batches == [2 * 4] * 4 + [2 * 2] * 4, "requests with previews run together, the others by themselves"
    assert list(unnamed.sent[0].arrays()) == list(ALL)
    shown, batch = expected(model, seed=[7, 9], label=[3, 4], steps=4, guidance=0.5)
    found = [response.arrays() for response in watching.sent]
    assert len(found) == 4
    for step, arrays in enumerate(found):
        np.testing.assert_array_equal(arrays["image"], shown[step])
        assert arrays["step"].tolist() == [[step]] * 2
        assert arrays["timestep"].tolist() == [[batch.timesteps[step]]] * 2
        assert arrays["final"].tolist() == [[step == 3]] * 2
        assert [arrays[name].dtype.name for name in ALL[1:]] == ["int32", "int32", "bool"]
    for response in (found[-1], waiting.sent[0].arrays()):
        np.testing.assert_array_equal(response["image"], batch.images)
    assert len(waiting.sent) == 1
    assert shown[0].tobytes() != shown[3].tobytes()


def test_a_cancelled_stream_stops_the_chain_at_the_next_step(model: Served) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(len(request.sent))
        return len(request.sent) == 2

    request = Request(ALL, cancelled, seed=ints(1), label=ints(3), steps=int32(9))
    assert model.answer(request)[0].refusal()[0] == TritonError.CANCELLED
    assert len(request.sent) == 3, "two previews and the refusal"
    assert "stopped after step 3 of 9: every request of the run was cancelled" in model.server.Logger.lines[-1]


def test_a_refusal_is_the_only_response(model: Served) -> None:
    several = Request(ALL, seed=ints(1, 2), label=ints(3, 4), steps=int32(3, 4))
    bad, apart = Request(ALL, seed=ints(1)), Request(["image"], seed=ints(1, 2), label=ints(3, 4), steps=int32(3, 4))
    code, text = model.answer(several, bad, apart)[0].refusal()
    assert code == TritonError.INVALID_ARG
    assert "previews: found 2 settings among 2 samples, expected one" in text
    assert "label is missing" in bad.sent[0].refusal()[1]
    assert (len(several.sent), len(bad.sent)) == (1, 1)
    assert apart.sent[0].arrays()["image"].shape[0] == 2


def test_a_run_in_chunks_sends_whole_previews(model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.sampler._pipeline, "max_batch", 2)
    request = Request(ALL, seed=ints(1, 2, 3), label=ints(3, 4, 5), steps=int32(2, 2, 2))
    model.answer(request)
    shown, batch = expected(model, seed=[1, 2, 3], label=[3, 4, 5], steps=2)
    preview, final = (response.arrays()["image"] for response in request.sent)
    np.testing.assert_array_equal(preview, np.concatenate(shown[::2]))
    np.testing.assert_array_equal(final, batch.images)


def test_a_model_without_previews_has_no_such_outputs(tmp_path: Path) -> None:
    with loading(tmp_path) as start:
        plain = start()
        request = Request([*ALL, "recon"], seed=ints(1), steps=int32(3))
        assert set(plain.answer(request)[0].arrays()) == {"image", "recon"}
