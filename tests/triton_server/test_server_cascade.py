"""A cascade on the real server: one model, Python's bits, and the smaller image where a client asks for it."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Cascade
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PROTOCOLS, Client, at_once
from tests.triton_server.served import SERVED

BOTH = ("image", "image_1")


@pytest.fixture(scope="module")
def cascade(bundles: dict[str, Path]) -> Iterator[Cascade]:
    """What the answers must equal, set as the server's is."""
    chosen = SERVED["cascade"]
    with Cascade(bundles["cascade"], chosen.backend or "auto", chosen.precision, threads=1) as opened:
        yield opened


def test_its_tensors_follow_from_the_stages(server: LocalServer) -> None:
    status, body = server.get("/v2/models/cascade")
    told = json.loads(body)
    inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in told["inputs"]}
    outputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in told["outputs"]}
    assert status == 200
    assert inputs["label"] == ("INT64", [-1, 1])
    assert inputs["noise_level_2"] == ("INT32", [-1, 1])
    assert not {"photo", "level"} & set(inputs)
    assert outputs == {"image": ("UINT8", [-1, 12, 16, 3]), "image_1": ("UINT8", [-1, 8, 8, 3])}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_equal_the_cascades(server: LocalServer, cascade: Cascade, protocol: str) -> None:
    seeds, label = [7, 0, 2**62], np.array([3, 0, 10])
    with Client(protocol, server) as client:
        found = client.sample("cascade", seeds, BOTH, label=label)
        again = client.sample("cascade", seeds, ("image",), label=label, steps_2=3, noise_level_2=90, guidance_2=0.5)
    expected = cascade.sample(seed=seeds, label=label)
    np.testing.assert_array_equal(found["image"], expected.images)
    np.testing.assert_array_equal(found["image_1"], expected.stages[0].images)
    later = {"steps": 3, "noise_level": 90, "guidance": 0.5}
    np.testing.assert_array_equal(again["image"], cascade.sample(seed=seeds, label=label, stages=[later]).images)


def test_several_clients_at_once_get_their_own(server: LocalServer, cascade: Cascade) -> None:
    def ask(client: Client, seed: int) -> np.ndarray:
        return client.sample("cascade", [seed], label=seed)["image"][0]

    answers = at_once(server, "grpc", [functools.partial(ask, seed=seed) for seed in range(4)])
    for seed, image in enumerate(answers):
        assert isinstance(image, np.ndarray)
        expected = cascade.sample(seed=[seed], label=seed).images[0]
        assert np.abs(image.astype(int) - expected).max() <= 1, "ONNX Runtime may round otherwise in another batch"


def test_bad_options_of_a_stage_are_refused_with_a_sentence(server: LocalServer) -> None:
    message = r"noise_level is 1000; expected 0 \(none\) .. 999"
    with Client("http", server) as client, pytest.raises(InferenceServerException, match=message):
        client.sample("cascade", [1], label=1, noise_level_2=1000)
