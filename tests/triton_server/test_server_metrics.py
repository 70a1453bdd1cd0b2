"""The server's own numbers add up: statistics and Prometheus metrics after a known number of requests."""

from __future__ import annotations

import re

import pytest
from tritonclient.utils import InferenceServerException

from engine.triton.local_server import LocalServer
from engine.triton.statistics import STAGES, counters, metrics
from tests.triton_server.client import Client, added_by


def test_metrics_count_requests_samples_and_executions(server: LocalServer) -> None:
    before, counted = metrics(server, "toy"), counters(server, "toy")
    with Client("grpc", server) as client:
        for n in (1, 2, 4):
            client.sample("toy", list(range(n)), steps=20)
    added = added_by(server, "toy", counted, 3)
    after = metrics(server, "toy")
    grown = {name: value - before[name] for name, value in after.items()}
    assert grown["nv_inference_request_success"] == added.requests == 3
    assert grown["nv_inference_count"] == added.samples == 7
    assert grown["nv_inference_exec_count"] == added.executions == 3
    assert grown["nv_inference_request_failure"] == 0
    assert after["nv_inference_pending_request_count"] == 0
    assert added.batches == {1: 1, 2: 1, 4: 1}
    parts = sum(grown[f"nv_inference_{stage}_duration_us"] for stage in STAGES)
    assert 0 < parts <= grown["nv_inference_request_duration_us"]
    assert grown["nv_inference_compute_infer_duration_us"] > 0.5 * grown["nv_inference_request_duration_us"]


def test_refusals_are_counted_by_outcome(server: LocalServer) -> None:
    # Triton itself counts a Python model's error responses as successes.
    def outcomes() -> dict[str, float]:
        _, body = server.get("/metrics", metrics=True)
        found = re.findall(r'^diffusevae_requests_total\{(.*model="toy".*)\} (\S+)$', body.decode(), re.MULTILINE)
        return {re.findall(r'outcome="(\w+)"', labels)[0]: float(value) for labels, value in found}

    before = outcomes()
    with Client("http", server) as client:
        client.sample("toy", [1])
        for _ in range(2):
            with pytest.raises(InferenceServerException, match="steps is 0"):
                client.sample("toy", [1], steps=0)
    server.wait_until(lambda: outcomes()["refused"] == before["refused"] + 2, "count of the refusals", 10)
    assert outcomes()["ok"] == before["ok"] + 1
    assert outcomes()["failed"] == before["failed"]


def test_a_request_that_waits_is_seen_in_the_queue(server: LocalServer) -> None:
    counted = counters(server, "faces")
    with Client("grpc", server) as client:
        client.sample("faces", [1], steps=2)
    added = added_by(server, "faces", counted, 1)
    assert 0.08 < added.seconds["queue"] < 5  # the delay of this model is 0.1 s, and no other came to share the batch


def test_metrics_of_the_machine(server: LocalServer) -> None:
    status, body = server.get("/metrics", metrics=True)
    assert status == 200
    assert b"nv_cpu_memory_used_bytes" in body
