"""A model comes, goes, and stays away when it must: health endpoints, reload, refusals, shutdown and crash."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import SHARED_MEMORY, LocalServer, Ports, living
from engine.triton.repository import write_repository
from engine.triton.server_files import ServerError
from engine.triton.statistics import counters
from tests import toy
from tests.triton_server.client import Client, count
from tests.triton_server.served import SERVED

# Seconds after which a stopping server gives up and ends with 1: a bound, not a wait, far above what a busy machine needs.
DRAIN = 60


def state_of(client: Client, model: str) -> dict[str, Any]:
    """The repository index' entry of a model."""
    return next(entry for entry in client.raw.get_model_repository_index() if entry["name"] == model)


def test_health_endpoints(server: LocalServer) -> None:
    assert server.get("/v2/health/live") == (200, b"")
    assert server.get("/v2/health/ready")[0] == 200
    assert server.get("/v2/models/faces/ready")[0] == 200
    assert server.get("/v2/models/nan/ready")[0] == 400  # in the repository, and not loaded
    with Client("grpc", server) as client:
        assert client.raw.is_server_live()
        assert client.raw.is_server_ready()
        assert client.raw.is_model_ready("faces")
        assert not client.raw.is_model_ready("nan")


def test_unload_and_load(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    with Client("http", server) as client:
        client.raw.unload_model("plain")
        server.wait_until(lambda: not server.answers("ready", "plain"), "unloaded model", deadline=20)
        with pytest.raises(InferenceServerException, match=r"plain.* is not (ready|found)|unknown model: 'plain'"):
            client.sample("plain", [1])
        assert server.answers("ready", "faces")
        client.raw.load_model("plain")
        assert server.answers("ready", "plain")
        found = client.sample("plain", [1])["image"]
    np.testing.assert_array_equal(found, samplers["plain"].sample(seed=[1]).images)


def test_a_new_bundle_replaces_the_old_one_under_load(
    server: LocalServer, repository: Path, bundles: dict[str, Path], samplers: dict[str, Sampler], tmp_path: Path
) -> None:
    other = toy.build_bundle(tmp_path / "other.bundle", backends=("onnxruntime",), defaults={"steps": 3})
    with Sampler(other, "onnxruntime") as sampler:
        new, old = sampler.sample(seed=[5]).images, samplers["toy"].sample(seed=[5]).images
    assert not np.array_equal(new, old)
    answers: list[np.ndarray] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with Client("grpc", server) as client:
            while not stop.is_set():
                answers.append(client.sample("toy", [5])["image"])

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        with Client("http", server) as client:
            for bundle, expected in ((other, new), (bundles["toy"], old)):
                write_repository(bundle, repository, SERVED["toy"], replace=True)
                client.raw.load_model("toy")
                np.testing.assert_array_equal(client.sample("toy", [5])["image"], expected)
    finally:
        stop.set()
        asking.join()
    # No client was turned away in between, and every answer was one of the two bundles'.
    assert {image.tobytes() for image in answers} <= {new.tobytes(), old.tobytes()}
    assert len(answers) > 10


def test_a_damaged_bundle_is_refused_with_the_reason(server: LocalServer, repository: Path) -> None:
    shutil.copytree(repository / "toy", repository / "damaged")
    file = repository / "damaged" / "1" / "bundle" / "denoiser.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    config = repository / "damaged" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "toy"', 'name: "damaged"', 1))
    with Client("http", server) as client:
        with pytest.raises(InferenceServerException, match=r"found SHA-256 .*, expected .* rebuild the bundle"):
            client.raw.load_model("damaged")
        count("loads refused")
        entry = state_of(client, "damaged")
        assert entry["state"] == "UNAVAILABLE"
        assert "found SHA-256" in entry["reason"]
        with pytest.raises(InferenceServerException, match="damaged"):
            client.sample("damaged", [1])
        assert "denoiser.onnx: found SHA-256" in server.log()
        assert not server.answers("ready", "damaged")
        assert server.answers("ready", "toy")
        assert not server.answers("ready"), "the server as a whole counts as unready until the model is mended"
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        client.raw.load_model("damaged")
        assert server.answers("ready", "damaged")
        assert server.answers("ready")


def test_a_failing_warm_up_keeps_the_model_away_and_the_server_alive(
    server: LocalServer, repository: Path, bundles: dict[str, Path]
) -> None:
    with Client("http", server) as client:
        for _ in range(3):
            with pytest.raises(InferenceServerException, match="returned NaN or infinity"):
                client.raw.load_model("nan")
            count("loads refused")
            assert state_of(client, "nan")["state"] == "UNAVAILABLE"
            assert "warm-up: " in state_of(client, "nan")["reason"]
            assert not server.answers("ready", "nan")
            assert server.answers("live")
            assert server.answers("ready", "faces")
        assert "returned NaN or infinity at step 1" in server.log()
        write_repository(bundles["toy"], repository, SERVED["nan"], replace=True)
        client.raw.load_model("nan")
        assert server.answers("ready")
        client.raw.unload_model("nan")
    write_repository(bundles["nan"], repository, SERVED["nan"], replace=True)


def test_a_server_told_to_serve_everything_ends_when_a_model_fails(
    installed: None, bundles: dict[str, Path], tmp_path: Path
) -> None:
    write_repository(bundles["nan"], tmp_path, SERVED["nan"])
    server = LocalServer(tmp_path)
    with pytest.raises(ServerError, match=r"server ended, expected ready server(.|\n)*returned NaN or infinity"):
        server.start()
    assert server.exit_code == 1
    count("servers started")


def test_a_model_that_failed_at_the_start_keeps_the_server_unready(repository: Path) -> None:
    server = LocalServer(repository, load=("nan", "toy"), drain=DRAIN)
    server.start(ready=False)
    count("servers started")
    try:
        server.wait_for_log("returned NaN or infinity at step 1")
        server.wait_until(lambda: server.answers("ready", "toy"), "ready model", deadline=30)
        assert server.answers("live")
        assert not server.answers("ready"), "a balancer must not send requests here"
    finally:
        assert server.stop() == 0


def test_a_stopping_server_answers_what_it_took_and_leaves_nothing_behind(
    repository: Path, samplers: dict[str, Sampler]
) -> None:
    count("servers started")
    with LocalServer(repository, load=("faces",), drain=DRAIN) as server:
        group, prefix = server.pid, server.shared_memory
        assert len(living(group)) == 2  # the server, and the model's process
        found: list[np.ndarray] = []

        def ask() -> None:
            with Client("grpc", server) as client:
                found.append(client.sample("faces", [4], steps=334)["image"])

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        assert server.stop() == 0
        asking.join()
    np.testing.assert_array_equal(found[0], samplers["faces"].sample(seed=[4], steps=334).images)
    assert living(group) == []
    assert list(SHARED_MEMORY.glob(f"{prefix}*")) == []
    assert "successfully unloaded 'faces'" in server.log()


def test_a_crashed_server_is_cleaned_up(repository: Path) -> None:
    server = LocalServer(repository, load=("toy",)).start()
    count("servers started")
    group, prefix = server.pid, server.shared_memory
    os.kill(group, signal.SIGKILL)
    with pytest.raises(ServerError, match="found that the server ended, expected another answer; its log says"):
        server.wait_until(lambda: False, "another answer")
    assert server.stop() == -signal.SIGKILL
    assert server.stop() == -signal.SIGKILL, "stopping twice does no harm"
    assert living(group) == []
    assert list(SHARED_MEMORY.glob(f"{prefix}*")) == []


def test_two_servers_cannot_be_taken_for_one(server: LocalServer, repository: Path) -> None:
    second = LocalServer(repository, load=("toy",), ports=server.ports)
    with pytest.raises(ServerError, match="already in use"):
        second.start()
    count("servers started")
    assert second.exit_code == 1
    assert server.answers("live")


def test_two_servers_share_a_port_and_answer_alike(repository: Path, samplers: dict[str, Sampler]) -> None:
    options = ["--reuse-grpc-port=1"]
    with LocalServer(repository, load=("toy",), options=options) as first:
        shared = replace(Ports.free(), grpc=first.ports.grpc)
        with LocalServer(repository, load=("toy",), options=options, ports=shared) as second:
            count("servers started", 2)
            before = [counters(each, "toy").requests for each in (first, second)]
            for _ in range(40):  # the kernel deals out connections, not requests
                with Client("grpc", first) as client:
                    found = client.sample("toy", [9])["image"]
                    np.testing.assert_array_equal(found, samplers["toy"].sample(seed=[9]).images)
            served = [counters(each, "toy").requests - old for each, old in zip((first, second), before, strict=True)]
    assert min(served) > 0, served
