"""A bundle with two guides on the real server: the images of a Sampler, by both protocols."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PROTOCOLS, Client

LABELS = np.array([2, 0, 1])
SETTINGS: list[dict[str, Any]] = [
    {}, {"guide_scale": 0.5, "guide_mode": "norm"},
    {"guide_scale": 1.5, "method": "ddpm", "steps": 4, "guide_mode": "entropy", "guide_interval": (200, 700)},
]  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_images_equal_the_samplers(
    server: LocalServer, samplers: dict[str, Sampler], protocol: str, setting: dict[str, Any]
) -> None:
    seeds, sent = [7, 0, 2**62], dict(setting)
    if "guide_interval" in sent:
        sent["guide_interval"] = np.tile(sent["guide_interval"], (3, 1))
    with Client(protocol, server) as client:
        found = client.sample("guided", seeds, label=LABELS, **sent)["image"]
        plain = client.sample("guided", seeds, guide_scale=0.0)["image"]
    sampler = samplers["guided"]
    np.testing.assert_array_equal(found, sampler.sample(seed=seeds, label=LABELS, **setting).images)
    np.testing.assert_array_equal(plain, sampler.sample(seed=seeds, guide_scale=0).images)
    assert (found != plain).any()


def test_its_options_are_optional_tensors_and_checked(server: LocalServer) -> None:
    _, body = server.get("/v2/models/guided")
    inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in json.loads(body)["inputs"]}
    assert (inputs["guide_scale"], inputs["guide_mode"]) == (("FP32", [-1, 1]), ("BYTES", [-1, 1]))
    assert inputs["guide_interval"] == ("INT32", [-1, 2])
    with Client("http", server) as client:
        for options, message in (
            ({}, "found no label, expected it"), ({"label": 3}, "label runs from 3 to 3"),
            ({"label": 1, "guide_scale": 1.0, "method": "plms"}, "only ddim_clipped and ddpm take a guide"),
        ):  # fmt: skip
            with pytest.raises(InferenceServerException, match=message):
                client.sample("guided", [1], **options)
