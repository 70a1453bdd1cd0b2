"""Requests of several clients run together; each gets what it would get alone, and a bad one fails alone."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import LocalServer
from engine.triton.statistics import Counters, counters
from tests.triton_server.client import PROTOCOLS, Client, added_by, at_once
from tests.triton_server.served import MANY_STEPS

TRIES = 5  # a busy machine may let one of the clients go too late to meet the others

Job = Callable[[Client], Any]


def ask(client: Client, seed: int, **options: Any) -> np.ndarray:
    return client.sample("faces", [seed], **options)["image"][0]


def together(server: LocalServer, protocol: str, jobs: Sequence[Job], batch: int) -> tuple[list[Any], Counters]:
    """All jobs at once, again until an execution took `batch` requests of them; the answers, and what the server counted."""
    for _ in range(TRIES):
        before = counters(server, "faces")
        answers = at_once(server, protocol, jobs)
        added = added_by(server, "faces", before, len(jobs))
        if max(added.batches) >= batch:
            return answers, added
    raise AssertionError(f"no batch of {batch} was formed in {TRIES} tries: {added}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equal_settings_run_as_one_batch_and_answers_equal_the_lone_ones(
    server: LocalServer, samplers: dict[str, Sampler], protocol: str
) -> None:
    jobs = [functools.partial(ask, seed=seed, steps=4) for seed in range(8)]
    answers, added = together(server, protocol, jobs, batch=8)
    for seed, image in enumerate(answers):
        np.testing.assert_array_equal(image, samplers["faces"].sample(seed=[seed], steps=4).images[0])
    assert (added.requests, added.samples) == (8, 8)
    assert added.executions < 8
    assert added.mean_batch > 1


def test_different_settings_in_one_batch_do_not_mix(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    settings = [
        {"steps": 2, "method": "ddim", "guidance": 0.0},
        {"steps": 3, "method": "ddim", "guidance": 0.0},
        {"steps": 3, "method": "ddpm", "guidance": 0.0},
        {"steps": 2, "method": "ddim", "guidance": 0.5},
        {"steps": 2, "method": "ddim", "guidance": 0.0},
    ]
    jobs = [functools.partial(ask, seed=40 + i, **setting) for i, setting in enumerate(settings)]
    answers, _ = together(server, "grpc", jobs, batch=len(settings))
    for i, (setting, image) in enumerate(zip(settings, answers, strict=True)):
        expected = samplers["faces"].sample(seed=[40 + i], **setting).images[0]
        np.testing.assert_array_equal(image, expected, err_msg=str(setting))


def test_requests_with_other_inputs_are_other_batches(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    # The server itself puts requests together only when they carry the same optional inputs.
    settings: list[dict[str, Any]] = [{}, {"steps": 2}, {"steps": 3, "t_start": 300}, {"temperature": 0.5}]
    before = counters(server, "faces")
    jobs = [functools.partial(ask, seed=60 + i, **setting) for i, setting in enumerate(settings)]
    answers = at_once(server, "http", jobs)
    assert added_by(server, "faces", before, 4).batches == {1: 4}
    for i, (setting, image) in enumerate(zip(settings, answers, strict=True)):
        expected = samplers["faces"].sample(seed=[60 + i], **setting).images[0]
        np.testing.assert_array_equal(image, expected, err_msg=str(setting))


Z = np.full((1, 24), 0.5, np.float32)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("good", "bad", "sentence"),
    [
        ({"method": "ddim"}, {"method": "ddimm"}, "Did you mean 'ddim'"),
        ({"steps": 3}, {"steps": 0}, "steps"),
        ({"steps": 3}, {"steps": 1001}, "steps is 1001; expected 1 .. 1000"),
        ({"steps": 3, "t_start": 300}, {"steps": 3, "t_start": 5000}, "t_start"),
        ({"guidance": 0.5}, {"guidance": np.nan}, "guidance"),
        ({"z": Z}, {"z": Z * np.inf}, "z holds 24 values that are NaN or infinite"),
    ],
)
def test_a_bad_request_in_a_batch_fails_alone_with_its_sentence(
    server: LocalServer,
    samplers: dict[str, Sampler],
    protocol: str,
    good: dict[str, Any],
    bad: dict[str, Any],
    sentence: str,
) -> None:
    jobs = [functools.partial(ask, seed=seed, **good) for seed in range(3)]
    answers, _ = together(server, protocol, [*jobs, functools.partial(ask, seed=9, **bad)], batch=4)
    for seed, image in enumerate(answers[:3]):
        np.testing.assert_array_equal(image, samplers["faces"].sample(seed=[seed], **good).images[0])
    assert isinstance(answers[3], InferenceServerException)
    assert sentence in str(answers[3])
    assert answers[3].status() == ("400" if protocol == "http" else "StatusCode.INVALID_ARGUMENT")


def test_requests_of_several_samples_are_joined(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    def ask_three(client: Client, first: int) -> np.ndarray:
        return client.sample("faces", [first, first + 1, first + 2], steps=3)["image"]

    answers, added = together(server, "grpc", [functools.partial(ask_three, first=f) for f in (100, 200)], batch=6)
    for first, images in zip((100, 200), answers, strict=True):
        np.testing.assert_array_equal(images, samplers["faces"].sample(3, seed=first, steps=3).images)
    assert added.samples == 6


def test_a_full_queue_refuses_and_the_others_are_served(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    def ask_long(client: Client) -> np.ndarray:
        return client.sample("narrow", [3], steps=MANY_STEPS)["image"]

    answers = at_once(server, "grpc", [ask_long] * 8)
    refused = [answer for answer in answers if isinstance(answer, InferenceServerException)]
    served = [answer for answer in answers if not isinstance(answer, InferenceServerException)]
    assert len(served) >= 2
    assert refused, "one runs and two may wait"
    assert {str(error).partition("] ")[2].partition("] ")[2] for error in refused} == {"Exceeds maximum queue size"}
    expected = samplers["toy"].sample(seed=[3], steps=MANY_STEPS).images
    for image in served:
        np.testing.assert_array_equal(image, expected)


def test_no_request_is_forgotten_in_the_queue(server: LocalServer) -> None:
    # With allow_timeout_override in the queue's policy this server's batcher misses wake-ups: of 240 requests 48 waited
    # for half a second beside an idle model. A busy machine may hold up a few.
    def ask_often(client: Client) -> list[float]:
        taken = []
        for seed in range(30):
            started = time.monotonic()
            client.sample("toy", [seed], steps=2)
            taken.append(time.monotonic() - started)
        return taken

    answers = at_once(server, "grpc", [ask_often] * 8)
    taken = [seconds for part in answers if isinstance(part, list) for seconds in part]
    assert len(taken) == 240
    assert sum(seconds > 0.4 for seconds in taken) < 5, sorted(taken)[-10:]
