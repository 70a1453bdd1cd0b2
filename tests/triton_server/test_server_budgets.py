"""Fitted settings and budgets of time on the real server: what is chosen and told, in answers that leave one by one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PROTOCOLS, Client, at_once

AMPLE, NONE = 60_000.0, 0.001  # ms
TOLD = ("image", "calls", "took_ms", "kept")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_best_setting_that_a_budget_allows(server: LocalServer, samplers: dict[str, Sampler], protocol: str) -> None:
    sampler, seeds = samplers["toy"], [1, 2]
    with Client(protocol, server) as client:
        best = client.sample("toy", seeds, TOLD, budget_ms=AMPLE)
        fastest = client.sample("toy", seeds, TOLD, budget_ms=NONE, at_most=True)
        plain = client.sample("toy", seeds, steps=3, setting="plain")
        with pytest.raises(InferenceServerException, match="no fitted setting keeps here"):
            client.sample("toy", seeds, budget_ms=NONE)
    for found, calls, kept in ((best, 5, True), (fastest, 3, False)):
        assert (found["calls"].tolist(), found["kept"].tolist()) == ([[calls]] * 2, [[kept]] * 2)
        assert NONE < found["took_ms"][0, 0] < AMPLE
        np.testing.assert_array_equal(found["image"], sampler.sample(seed=seeds, steps=calls).images)
    np.testing.assert_array_equal(plain["image"], sampler.sample(seed=seeds, steps=3, setting="plain").images)


def test_requests_that_meet_in_the_queue_are_answered_each_in_its_way(
    server: LocalServer, samplers: dict[str, Sampler]
) -> None:
    def kept() -> float:
        _, body = server.get("/metrics", metrics=True)
        found = re.findall(r'^diffusevae_budgets_total\{(.*model="toy".*)\} (\S+)$', body.decode(), re.MULTILINE)
        return sum(float(value) for labels, value in found if 'outcome="kept"' in labels)

    before, budgets = kept(), [AMPLE, 0.0, NONE, AMPLE + 1] * 4
    jobs = [lambda client, ms=ms: client.sample("toy", [7], budget_ms=ms)["image"] for ms in budgets]
    expected = samplers["toy"].sample(seed=7, steps=5).images
    for ms, found in zip(budgets, at_once(server, "grpc", jobs), strict=True):
        if ms >= AMPLE:
            np.testing.assert_array_equal(found, expected)
        else:
            assert isinstance(found, InferenceServerException)
            assert ("budget_ms is 0;" if ms == 0.0 else "no fitted setting keeps here") in str(found)
    server.wait_until(lambda: kept() == before + 8, "count of the budgets that were kept", 10)
