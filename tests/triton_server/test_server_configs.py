"""The real server reads what the generator writes, the variant for stock servers too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from engine.bundle.writer import write_bundle
from engine.triton.local_server import LocalServer
from engine.triton.repository import write_repository
from engine.triton.serving import Serving
from tests import toy
from tests.manifests import full_files, full_manifest
from tests.triton_server.client import Client, count
from tests.triton_server.served import DELAY_US, MANY_STEPS


def test_the_server_means_what_the_file_says(server: LocalServer) -> None:
    status, body = server.get("/v2/models/faces/config")
    config = json.loads(body)
    assert status == 200
    assert (config["max_batch_size"], config["dynamic_batching"]["max_queue_delay_microseconds"]) == (8, DELAY_US)
    assert config["parameters"]["max_steps"]["string_value"] == str(MANY_STEPS)
    assert [warmup["batch_size"] for warmup in config["model_warmup"]] == [1, 8]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"


def test_two_instances_are_two_processes(server: LocalServer) -> None:
    assert "TRITONBACKEND_ModelInstanceInitialize: plain_0_0 (CPU device 0)" in server.log()
    assert "TRITONBACKEND_ModelInstanceInitialize: plain_0_1 (CPU device 0)" in server.log()


def test_the_whole_sampler_is_read_and_misses_only_its_backend(installed: None, tmp_path: Path) -> None:
    # The wheel has the Python backend only. A configuration that the server cannot read is refused before it looks for one.
    models = toy.models_of(1, 8, 4, False)
    write_bundle(tmp_path / "whole.bundle", full_manifest(models), full_files(models))
    written = write_repository(tmp_path / "whole.bundle", tmp_path / "models", Serving("whole", backend="onnxruntime"))
    assert written.graph == tmp_path / "models" / "whole_graph"
    count("servers started")
    with LocalServer(tmp_path / "models", load=()) as server, Client("http", server) as client:
        with pytest.raises(InferenceServerException, match=r"unable to find .*backend.*onnxruntime"):
            client.raw.load_model("whole_graph")
        count("loads refused")
        config = written.graph / "config.pbtxt"
        config.write_text(config.read_text().replace("max_batch_size", "most_samples"))
        with pytest.raises(InferenceServerException, match="failed to load 'whole_graph'"):
            client.raw.load_model("whole_graph")
        assert "has no field named \"most_samples\"" in server.log()
