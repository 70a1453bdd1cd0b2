"""Previews on the real server: a stream of one response a step, the last of them the answer; a stream that is cancelled."""

from __future__ import annotations

import functools
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler, StepInfo
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PATIENCE, PROTOCOLS, Client, at_once, count
from tests.triton_server.served import MANY_STEPS
from tests.triton_server.test_server_interruptions import stops

OUTPUTS = ("image", "step", "timestep", "final")


@contextmanager
def stream(
    client: Client, model: str, seeds: Sequence[int], outputs: Sequence[str] = OUTPUTS, **options: Any
) -> Iterator[Any]:
    """What yields the responses of one request, an error raised, until the final one."""
    answers: queue.Queue[Any] = queue.Queue()

    def responses() -> Iterator[dict[str, np.ndarray]]:
        while True:
            result, error = answers.get(timeout=PATIENCE)
            if error is not None:
                raise error
            yield {name: result.as_numpy(name) for name in outputs}
            if result.get_response().parameters["triton_final_response"].bool_param:
                return

    client.raw.start_stream(lambda result, error: answers.put((result, error)))
    count("grpc streams")
    wanted = [client.module.InferRequestedOutput(name) for name in outputs]
    client.raw.async_stream_infer(model, client.inputs(seeds, options), outputs=wanted)
    yield responses()
    client.raw.stop_stream()


def steps_of(sampler: Sampler, **options: Any) -> tuple[list[np.ndarray], list[int]]:
    shown: list[np.ndarray] = []

    def look(info: StepInfo) -> None:
        shown.append(info.images())

    with sampler.clone() as own:
        return shown, own.sample(callback=look, **options).timesteps.tolist()


def check(client: Client, model: str, sampler: Sampler, seed: int, **options: Any) -> None:
    with stream(client, model, [seed, seed + 1], **options) as responses:
        found = list(responses)
    shown, timesteps = steps_of(sampler, seed=[seed, seed + 1], **options)
    assert [arrays["step"].ravel().tolist() for arrays in found] == [[step] * 2 for step in range(len(timesteps))]
    assert [arrays["timestep"][0, 0] for arrays in found] == timesteps
    assert [arrays["final"].all() for arrays in found] == [False] * (len(timesteps) - 1) + [True]
    for arrays, expected in zip(found, shown, strict=True):
        np.testing.assert_array_equal(arrays["image"], expected)


def test_each_steps_images_and_the_answer_last(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    with Client("grpc", server) as client:
        check(client, "streams", samplers["toy"], 5, steps=4, guidance=0.5)
    toy, options = samplers["toy"], {"steps": 6, "setting": "plain"}
    watching = [functools.partial(check, model="streams", sampler=toy, seed=seed, **options) for seed in (1, 3)]
    found, *checked = at_once(server, "grpc", [functools.partial(alone, seed=9, **options), *watching])
    assert checked == [None, None]
    np.testing.assert_array_equal(found, toy.sample(seed=[9], **options).images)


def alone(client: Client, seed: int, **options: Any) -> np.ndarray:
    """The answer of a request that asks for no previews."""
    with stream(client, "streams", [seed], ("image",), **options) as responses:
        (answer,) = responses
    found: np.ndarray = answer["image"]
    return found


def test_a_cancelled_stream_stops_its_run(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    before = len(stops(server))
    with Client("grpc", server) as client:
        with stream(client, "streams", [1], steps=MANY_STEPS) as responses:
            assert next(responses)["step"] == 0
            client.raw.stop_stream(cancel_requests=True)
        server.wait_until(lambda: len(stops(server)) > before, "line about a stopped run", deadline=PATIENCE)
        assert 1 <= stops(server)[-1] < MANY_STEPS
        check(client, "streams", samplers["toy"], 2, steps=3)


def test_refusals_end_a_stream(server: LocalServer) -> None:
    with Client("grpc", server) as client:
        for options, words in (({"steps": 0}, "steps is 0"), ({"steps": [3, 4]}, "found 2 settings among 2 samples")):
            refused = pytest.raises(InferenceServerException, match=words)
            with stream(client, "streams", [1, 2], **options) as responses, refused:
                next(responses)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ordinary_requests_are_refused(server: LocalServer, protocol: str) -> None:
    with Client(protocol, server) as client, pytest.raises(InferenceServerException, match="decoupled"):
        client.sample("streams", [1])
