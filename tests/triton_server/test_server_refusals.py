"""Malformed tensors, unknown names and garbage: the real server answers with a sentence and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PROTOCOLS, Client, count


@pytest.fixture(autouse=True)
def _goes_on(server: LocalServer, samplers: dict[str, Sampler]) -> Iterator[None]:
    """After each of these tests the server lives, and the image is the image."""
    yield
    with Client("grpc", server) as client:
        found = client.sample("toy", [123], steps=3)["image"]
    np.testing.assert_array_equal(found, samplers["toy"].sample(seed=[123], steps=3).images)


def zeros(name: str, kind: str, dtype: Any, *shape: int) -> tuple[str, str, np.ndarray]:
    return name, kind, np.zeros(shape, dtype)


SEED = zeros("seed", "INT64", np.int64, 1, 1)
MALFORMED = {
    "no input": ([], "seed"),
    "no seed": ([zeros("steps", "INT32", np.int32, 1, 1)], "seed"),
    "seed of another type": ([zeros("seed", "INT32", np.int32, 1, 1)], "INT32"),
    "seed as floats": ([zeros("seed", "FP32", np.float32, 1, 1)], "FP32"),
    "seed of another shape": ([zeros("seed", "INT64", np.int64, 1, 2)], "shape"),
    "seed without the batch": ([zeros("seed", "INT64", np.int64, 1)], "shape"),
    "too many samples": ([zeros("seed", "INT64", np.int64, 5, 1)], "<= 4"),
    "an input too short": ([SEED, zeros("z", "FP32", np.float32, 1, 3)], "shape"),
    "inputs of other samples": ([SEED, zeros("z", "FP32", np.float32, 2, 4)], "batch"),
    "an unknown input": ([SEED, zeros("seeds", "INT64", np.int64, 1, 1)], "seeds"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_tensors(server: LocalServer, protocol: str, name: str) -> None:
    tensors, message = MALFORMED[name]
    with Client(protocol, server) as client:
        inputs = [client.tensor(name, values, kind) for name, kind, values in tensors]
        with pytest.raises(InferenceServerException, match=message):
            client.infer("toy", inputs)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_empty_batch(server: LocalServer, protocol: str) -> None:
    with Client(protocol, server) as client, pytest.raises(InferenceServerException, match=r"seed|batch"):
        client.infer("toy", [client.tensor("seed", np.zeros((0, 1), np.int64), "INT64")])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_names(server: LocalServer, protocol: str) -> None:
    with Client(protocol, server) as client:
        with pytest.raises(InferenceServerException, match="unknown model: 'no_such_model'"):
            client.sample("no_such_model", [1])
        with pytest.raises(InferenceServerException, match="picture"):
            client.sample("toy", [1], outputs=("picture",))
        with pytest.raises(InferenceServerException, match=r"guidance|input"):
            client.sample("plain", [1], guidance=0.5)  # nothing in it has a null: no such input


@pytest.mark.parametrize("name", ["method", "spacing"])
def test_names_that_are_no_text(server: LocalServer, name: str) -> None:
    with Client("grpc", server) as client:
        for junk in (b"\xff\xfe\x00", b"", b"x" * 100_000):
            with pytest.raises(InferenceServerException, match=f"{name}.*expected") as refusal:
                client.sample("toy", [1], **{name: junk})
            assert len(str(refusal.value)) < 1000, "what was sent is not repeated at length"


def post(server: LocalServer, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    count("http requests")
    count("requests refused or failed")
    return server.post("/v2/models/toy/infer", body, headers)


GARBAGE: dict[str, tuple[bytes, dict[str, str]]] = {
    "nothing": (b"", {}),
    "text": (b"hello", {}),
    "half of a JSON document": (b'{"inputs": [{"name": "seed", "shape": [1, 1], "data', {}),
    "random bytes": (np.random.default_rng(0).bytes(5000), {}),
    "deeply nested": (b"[" * 50_000, {}),
    "a list": (b"[]", {}),
    "header longer than the body": (b"{}", {"Inference-Header-Content-Length": "1000"}),
    "header length no number": (b"{}", {"Inference-Header-Content-Length": "many"}),
    "less data than the shape says": (
        json.dumps({"inputs": [{"name": "seed", "shape": [4, 1], "datatype": "INT64", "data": [1]}]}).encode(), {},
    ),
    "a shape of 2**62": (
        json.dumps({"inputs": [{"name": "seed", "shape": [2**62, 4], "datatype": "INT64", "data": [1]}]}).encode(), {},
    ),
    "a negative shape": (
        json.dumps({"inputs": [{"name": "seed", "shape": [-1, 1], "datatype": "INT64", "data": [1]}]}).encode(), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_over_http(server: LocalServer, name: str) -> None:
    body, headers = GARBAGE[name]
    status, answer = post(server, body, headers)
    assert status in (400, 500), answer
    assert json.loads(answer)["error"], answer


def test_a_binary_tensor_that_is_cut_short(server: LocalServer) -> None:
    seed = {"name": "seed", "shape": [2, 1], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [seed]}).encode()
    status, answer = post(server, head + b"\x01\x02\x03", {"Inference-Header-Content-Length": str(len(head))})
    assert status in (400, 500), answer
    assert json.loads(answer)["error"], answer
