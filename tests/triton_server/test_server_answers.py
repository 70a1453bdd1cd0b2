"""The real server answers what Sampler answers, bit for bit, over both protocols and for every option."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PROTOCOLS, Client, count

SETTINGS: dict[str, dict[str, Any]] = {
    "recorded": {},
    "ddim": {"steps": 4},
    "ancestral": {"steps": 5, "method": "ddpm", "spacing": "quad"},
    "from the reconstruction": {"steps": 3, "t_start": 400, "eta": 1.0},
    "guided": {"steps": 3, "guidance": 0.5, "temperature": 0.8},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", SETTINGS)
def test_images_equal_the_samplers(
    server: LocalServer, samplers: dict[str, Sampler], protocol: str, name: str
) -> None:
    seeds, setting = [7, 0, 2**62], SETTINGS[name]
    expected = samplers["faces"].sample(seed=seeds, **setting)
    with Client(protocol, server) as client:
        found = client.sample("faces", seeds, ("image", "recon", "z"), **setting)
    np.testing.assert_array_equal(found["image"], expected.images)
    np.testing.assert_array_equal(found["recon"], expected.start)
    np.testing.assert_array_equal(found["z"], expected.values["z"])
    assert found["image"].dtype == np.uint8


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("model", ["toy", "plain"])
def test_another_backend_and_a_model_without_inputs(
    server: LocalServer, samplers: dict[str, Sampler], protocol: str, model: str
) -> None:
    with Client(protocol, server) as client:
        found = client.sample(model, [1, 2, 3, 4], steps=6)
    np.testing.assert_array_equal(found["image"], samplers[model].sample(seed=[1, 2, 3, 4], steps=6).images)


def test_a_negative_seed_is_the_large_one(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    with Client("grpc", server) as client:
        found = client.sample("faces", [-1, -(2**63)])
    np.testing.assert_array_equal(found["image"], samplers["faces"].sample(seed=[2**64 - 1, 2**63]).images)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_drawn_input_can_be_given_and_comes_back(
    server: LocalServer, samplers: dict[str, Sampler], protocol: str
) -> None:
    sampler = samplers["faces"]
    z = np.random.default_rng(3).standard_normal((2, 24)).astype(np.float32)
    with Client(protocol, server) as client:
        found = client.sample("faces", [5, 6], ("image", "z"), z=z, steps=3)
    np.testing.assert_array_equal(found["z"], z)
    np.testing.assert_array_equal(found["image"], sampler.sample(z=z, seed=[5, 6], steps=3).images)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_edits_move_each_sample_of_a_request(server: LocalServer, samplers: dict[str, Sampler], protocol: str) -> None:
    edits: list[dict[str, float]] = [{"glasses": 1.0}, {}, {"beard": -0.3, "glasses": 1 / 3}]
    with Client(protocol, server) as client:
        texts = np.array([json.dumps(one) for one in edits], np.object_)
        found = client.sample("toy", [4, 5, 6], ("image", "z"), edits=texts)
        with pytest.raises(InferenceServerException, match=r"glases.*Did you mean 'glasses'"):
            client.sample("toy", [4], edits='{"glases": 1}')
    for row, one in enumerate(edits):
        expected = samplers["toy"].sample(seed=[4 + row], edits=one)
        np.testing.assert_array_equal(found["image"][row], expected.images[0])
        np.testing.assert_array_equal(found["z"][row], expected.values["z"][0])


def test_samples_of_one_request_may_differ_in_their_setting(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    with Client("http", server) as client:
        found = client.sample("faces", [1, 2, 3], steps=np.array([2, 5, 2]))["image"]
    for row, steps in enumerate((2, 5, 2)):
        np.testing.assert_array_equal(found[row], samplers["faces"].sample(seed=[row + 1], steps=steps).images[0])


def test_only_what_is_asked_for_is_sent(server: LocalServer) -> None:
    with Client("grpc", server) as client:
        wanted = [client.module.InferRequestedOutput("recon")]
        answer = client.infer("faces", client.inputs([1], {}), wanted)
        assert [tensor.name for tensor in answer.get_response().outputs] == ["recon"]


def test_plain_json_without_any_client_library(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    body = {"inputs": [{"name": "seed", "shape": [1, 1], "datatype": "INT64", "data": [11]}], "outputs": [{"name": "image"}]}
    status, answer = server.post("/v2/models/toy/infer", json.dumps(body).encode(), {"Content-Type": "application/json"})
    count("http requests")
    assert status == 200
    (tensor,) = json.loads(answer)["outputs"]
    assert tensor["datatype"] == "UINT8"
    image = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
    np.testing.assert_array_equal(image, samplers["toy"].sample(seed=[11]).images)


def test_the_servers_metadata_tells_shapes_and_types(server: LocalServer) -> None:
    status, body = server.get("/v2/models/faces")
    told = json.loads(body)
    inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in told["inputs"]}
    outputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in told["outputs"]}
    assert status == 200
    assert inputs["seed"] == ("INT64", [-1, 1])
    assert inputs["z"] == ("FP32", [-1, 24])
    assert outputs == {
        "image": ("UINT8", [-1, 16, 16, 3]), "recon": ("UINT8", [-1, 16, 16, 3]), "z": ("FP32", [-1, 24])
    }  # fmt: skip
