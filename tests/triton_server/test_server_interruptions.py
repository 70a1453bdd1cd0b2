"""A run whose client cancels, or dies, stops between two steps, and every other client is served."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PATIENCE, PROTOCOLS, Client, count
from tests.triton_server.served import MANY_STEPS

ROOT = Path(__file__).resolve().parents[2]
STOPPED = re.compile(rf"stopped after step (\d+) of {MANY_STEPS}: every request of the run was cancelled")
BEGUN = re.compile(r"begins \d+ requests")  # what the model itself logs when Triton is verbose
# A client in a process of its own that waits for MANY_STEPS steps.
LONG_REQUEST = """
import sys
import numpy as np
import tritonclient.{protocol} as protocol
client = protocol.InferenceServerClient(sys.argv[1])
inputs = [protocol.InferInput("seed", [1, 1], "INT64"), protocol.InferInput("steps", [1, 1], "INT32")]
inputs[0].set_data_from_numpy(np.array([[1]], np.int64))
inputs[1].set_data_from_numpy(np.array([[{steps}]], np.int32))
client.is_server_live()
print("asking", flush=True)
client.infer("faces", inputs)
print("answered", flush=True)
"""


def stops(server: LocalServer) -> list[int]:
    """After how many steps each run ended early that ended early until now."""
    return [int(step) for step in STOPPED.findall(server.log())]


class Begun:
    """Tells when a run of "faces" begins, which the server says while its log is verbose."""

    def __init__(self, server: LocalServer) -> None:
        self._server = server

    def __enter__(self) -> Begun:
        self._verbose(1)
        self._before = self._runs()
        return self

    def __exit__(self, *_: object) -> None:
        self._verbose(0)

    def wait(self) -> None:
        """Until one more run has begun than when the log became verbose."""
        self._server.wait_until(lambda: self._runs() > self._before, "run that began", deadline=PATIENCE)

    def _runs(self) -> int:
        return len(BEGUN.findall(self._server.log()))

    def _verbose(self, level: int) -> None:
        status, body = self._server.post("/v2/logging", json.dumps({"log_verbose_level": level}).encode())
        assert status == 200, body


class Pending:
    """A request over gRPC that can be cancelled while it runs."""

    def __init__(self, client: Client, seed: int, steps: int) -> None:
        self.image: np.ndarray | None = None
        self.error: InferenceServerException | None = None
        self._done = threading.Event()
        count("grpc requests")
        self._call = client.raw.async_infer("faces", client.inputs([seed], {"steps": steps}), self._finish)

    def _finish(self, result: object, error: InferenceServerException | None) -> None:
        self.error = error
        self.image = None if error else result.as_numpy("image")[0]  # type: ignore[attr-defined]
        self._done.set()

    def cancel(self) -> None:
        count("requests cancelled")
        self._call.cancel()

    def wait(self) -> None:
        assert self._done.wait(PATIENCE), "neither an answer nor an error came"


def test_a_cancelled_request_stops_between_steps(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    before = len(stops(server))
    with Client("grpc", server) as client:
        with Begun(server) as run:
            request = Pending(client, seed=1, steps=MANY_STEPS)
            run.wait()
        request.cancel()
        request.wait()
        assert request.error is not None
        assert "CANCELLED" in str(request.error)
        server.wait_until(lambda: len(stops(server)) > before, "line about a stopped run", deadline=PATIENCE)
        assert 1 <= stops(server)[-1] < MANY_STEPS
        found = client.sample("faces", [2], steps=3)["image"]
    np.testing.assert_array_equal(found, samplers["faces"].sample(seed=[2], steps=3).images)


def test_a_cancelled_request_does_not_disturb_its_batch(server: LocalServer, samplers: dict[str, Sampler]) -> None:
    steps = 500
    with Client("grpc", server) as client:
        with Begun(server) as run:
            requests = [Pending(client, seed, steps) for seed in range(3)]
            run.wait()
        requests[0].cancel()
        for request in requests:
            request.wait()
    assert requests[0].error is not None
    assert "CANCELLED" in str(requests[0].error)
    for seed, request in list(enumerate(requests))[1:]:
        assert request.image is not None, request.error
        np.testing.assert_array_equal(request.image, samplers["faces"].sample(seed=[seed], steps=steps).images[0])


def test_a_request_cancelled_in_the_queue_never_runs(server: LocalServer) -> None:
    before = len(stops(server))
    with Client("grpc", server) as client:
        with Begun(server) as run:
            first = Pending(client, seed=1, steps=MANY_STEPS)
            run.wait()
        second = Pending(client, seed=2, steps=MANY_STEPS)
        time.sleep(0.05)
        second.cancel()
        second.wait()
        first.cancel()
        first.wait()
        server.wait_until(lambda: len(stops(server)) > before, "line about a stopped run", deadline=PATIENCE)
        client.sample("faces", [3], steps=2)  # behind both: they have left the queue
    assert len(stops(server)) == before + 1
    assert second.error is not None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_killed_in_mid_request(server: LocalServer, samplers: dict[str, Sampler], protocol: str) -> None:
    before = len(stops(server))
    code = LONG_REQUEST.format(protocol=protocol, steps=MANY_STEPS)
    address = server.http if protocol == "http" else server.grpc
    count(f"{protocol} requests")
    with Begun(server) as run:
        victim = subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert victim.stdout is not None
        assert victim.stdout.readline() == "asking\n"
        run.wait()
    os.kill(victim.pid, signal.SIGKILL)
    count("clients killed")
    rest, _ = victim.communicate(timeout=PATIENCE)
    assert rest == "", "it was to die before the answer"
    assert victim.returncode == -signal.SIGKILL
    if protocol == "grpc":  # over HTTP this server notices a client's death only when it answers
        server.wait_until(lambda: len(stops(server)) > before, "line about a stopped run", deadline=PATIENCE)
    with Client(protocol, server) as client:
        found = client.sample("faces", [8], steps=3)["image"]
    np.testing.assert_array_equal(found, samplers["faces"].sample(seed=[8], steps=3).images)
    assert server.answers("ready")
