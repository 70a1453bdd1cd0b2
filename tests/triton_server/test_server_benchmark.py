"""The serving benchmark runs against the real server, and its result is what its schema promises."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from benchmarks.machine import machine_facts
from benchmarks.serving import run
from engine.triton.serving import Serving
from tests.triton_server.client import count

SCHEMA = Path(__file__).parents[2] / "benchmarks" / "schema" / "serving.schema.json"


def test_a_short_run(installed: None, bundles: dict[str, Path]) -> None:
    told: list[str] = []
    schedule = run.Schedule(clients=(1, 8), rounds=1, seconds=0.4)
    chosen = Serving(max_batch=4, delay_us=1000, threads=1)
    result = run.measure(machine_facts(), bundles["toy"], ("onnxruntime",), chosen, schedule, None, told.append)
    jsonschema.validate(result, json.loads(SCHEMA.read_text(encoding="utf-8")))
    rows = {(row["model"], row["clients"]): row for row in result["results"]}
    count("benchmark requests", sum(row["requests"] for row in rows.values()))
    count("servers started")
    assert sum(row["errors"] for row in rows.values()) == 0
    assert rows["onnxruntime_batched", 8]["mean_batch"] > 1
    # The server's two counters are read while requests are under way.
    assert rows["onnxruntime_single", 8]["mean_batch"] == pytest.approx(1, abs=0.1)
    assert "3 models answer what Sampler makes, 64 seeds each" in told
    assert rows["onnxruntime_http", 8]["mean_batch"] > 1
