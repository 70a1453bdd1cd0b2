"""What the tests of the latency benchmark share: contestants, a task of a golden model, a check against a schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency.field import BY_NAME, Task
from benchmarks.machine import machine_facts
from tests import golden_models

SCHEMAS = Path(__file__).parents[1] / "benchmarks" / "schema"
GoldenBundle = Callable[[str], Path]
TORCH, ORT, OPENVINO = BY_NAME["torch eager f32"], BY_NAME["onnxruntime f32"], BY_NAME["openvino f32"]
FACTS = machine_facts()


def check_schema(name: str, result: Any) -> None:
    """ValidationError unless a result is what its schema promises; skips where jsonschema is not installed."""
    jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
    jsonschema.validate(result, json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


def golden_task(golden_bundle: GoldenBundle, name: str) -> Task:
    """Three steps of a golden model's bundle on one thread."""
    path = golden_bundle(name)
    return Task(path, path.with_suffix(".ckpt"), golden_models.build_options(name), steps=3, threads=1)
