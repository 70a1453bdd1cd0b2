"""A bundle of a family that only the tests know: a class label and a style by name, on the real server."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.solver import noise
from engine.triton.local_server import LocalServer
from engine.triton.statistics import counters
from tests.toy_family import STATE, Reference
from tests.triton_server.client import PROTOCOLS, Client, added_by, at_once

TRIES = 5  # a busy machine may let one of the clients go too late to meet the others


def test_its_tensors_follow_from_the_manifest(server: LocalServer) -> None:
    status, body = server.get("/v2/models/latents")
    told = json.loads(body)
    inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in told["inputs"]}
    outputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in told["outputs"]}
    assert status == 200
    assert (inputs["label"], inputs["style"]) == (("INT64", [-1, 1]), ("FP32", [-1, 5]))
    assert "guidance" in inputs
    assert "t_start" not in inputs, "there is no image to start from"
    assert outputs == {"image": ("UINT8", [-1, 12, 16, 3]), "style": ("FP32", [-1, 5])}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("setting", [{}, {"steps": 4, "guidance": 1.5}, {"steps": 5, "eta": 0.5}])
def test_images_equal_the_samplers(
    server: LocalServer, samplers: dict[str, Sampler], protocol: str, setting: dict[str, Any]
) -> None:
    seeds, label = [7, 0, 2**62], np.array([3, 0, 10])
    with Client(protocol, server) as client:
        found = client.sample("latents", seeds, ("image", "style"), label=label, **setting)
    expected = samplers["latents"].sample(seed=seeds, label=label, **setting)
    np.testing.assert_array_equal(found["image"], expected.images)
    np.testing.assert_array_equal(found["style"], expected.values["style"])


def test_images_equal_the_reference(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    label, style = np.array([3, 9]), np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)
    with Client("grpc", server) as client:
        found = client.sample("latents", [4, 5], label=label, style=style, steps=8, guidance=2.0)["image"]
    timesteps = samplers["latents"].sample(seed=4, label=0, steps=8).timesteps.tolist()
    x_T, reference = noise.initial(np.array([4, 5], np.uint64), STATE), Reference()
    expected = reference.pixels(reference.sample(timesteps, x_T, label, style, guidance=2.0))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_labels_of_several_clients_run_as_one_batch(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    def ask(client: Client, seed: int) -> np.ndarray:
        return client.sample("latents", [seed], label=seed, steps=4, guidance=0.5)["image"][0]

    for _ in range(TRIES):
        before = counters(server, "latents")
        answers = at_once(server, "grpc", [functools.partial(ask, seed=seed) for seed in range(8)])
        added = added_by(server, "latents", before, 8)
        for seed, image in enumerate(answers):
            assert isinstance(image, np.ndarray)
            expected = samplers["latents"].sample(seed=[seed], label=seed, steps=4, guidance=0.5).images[0]
            assert np.abs(image.astype(int) - expected).max() <= 1, "ONNX Runtime may round otherwise in another batch"
        if max(added.batches) == 8:
            return
    raise AssertionError(f"no batch of 8 was formed in {TRIES} tries: {added}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "label"),
        ({"label": 11}, "label runs from 11 to 11; expected values in 0 .. 10"),
        ({"label": 1, "style": np.full((1, 5), np.nan)}, "style holds 5 values that are NaN"),
        ({"label": 1, "t_start": 300}, "t_start"),
    ],
)
def test_bad_inputs_are_refused_with_a_sentence(server: LocalServer, options: dict[str, Any], message: str) -> None:
    with Client("http", server) as client, pytest.raises(InferenceServerException, match=message):
        client.sample("latents", [1], **options)
