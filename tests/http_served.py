"""An HTTP server of a toy on the loopback interface, a client of it, and a gate that holds its worker back."""

from __future__ import annotations

import functools
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from engine import Bundle, Cascade, Sampler
from engine.bundle.directions import Directions
from engine.bundle.rewriter import write_directions
from engine.http.app import Options, create_app
from engine.http.guard import Door
from engine.http.limits import Limits
from engine.http.page import assets
from engine.serving.answers import Answer
from tests import toy
from tests.samplers import ANY_BACKEND, Z_DIM, _folder

NPY, PNG, JSON, EVENTS = "application/x-npy", "image/png", "application/json", "text/event-stream"
PATIENCE = 60.0  # seconds: on a busy machine


@functools.cache
def edited() -> Path:
    """A toy of formulation 1 with a recorded start and two directions."""
    defaults = {"steps": 4, "spacing": "linspace", "t_start": 450, "temperature": 0.8}
    path = toy.build_bundle(Path(_folder().name) / "edited.bundle", defaults=defaults)
    vectors = np.random.default_rng(5).standard_normal((2, Z_DIM)).astype(np.float32)
    write_directions(Bundle.open(path), Directions(("glasses", "beard"), vectors), {})
    return path


def lone(path: Path) -> Sampler:
    """A Sampler to compare with."""
    return Sampler(path, ANY_BACKEND, "f32", 1)


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def array(self) -> np.ndarray:
        assert self.status == 200, self.data
        found: np.ndarray = np.load(io.BytesIO(self.data))
        return found

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def refusal(self) -> tuple[int, str]:
        return self.status, self.json["error"]["message"]


class Served:
    """A running server."""

    def __init__(self, app: Any, port: int) -> None:
        self.app, self.port = app, port
        self.worker = app.state.service.worker

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request on a connection of its own; underscores in headers' names are hyphens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def ask(self, verb: str, body: Any, accept: str = NPY, query: str = "", **headers: str) -> Reply:
        """A verb's request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", f"/v1/{verb}{query}", data, Content_Type=JSON, Accept=accept, **headers)

    def open(self, verb: str, body: Any, accept: str = NPY, missing: int = 0) -> socket.socket:
        """A request whose answer is not waited for: close the socket, and its client is gone. missing: bytes that it holds
        back."""
        data = json.dumps(body).encode()
        place = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        head = f"POST /v1/{verb} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nAccept: {accept}\r\n"
        place.sendall(f"{head}Content-Length: {len(data) + missing}\r\n\r\n".encode() + data)
        return place

    def counted(self, name: str, **labels: str) -> float:
        """A metric; 0 where it has not been counted yet."""
        where = "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}" if labels else ""
        lines = self.send("GET", "/metrics").data.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{where} ")), 0.0)


def eventually(true: Callable[[], Any], what: str) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.005)


@contextmanager
def serving(
    path: Path | Bundle,
    door: Door | None = None,
    backend: str = ANY_BACKEND,
    precision: str = "f32",
    cascade: bool = False,
    **limits: Any,
) -> Iterator[Served]:
    """A server until the end of the block; of the bundle alone, or of the cascade that it names."""
    chosen = Limits(**{"max_batch": 8, "max_steps": 50, **limits})
    sampler = (Cascade if cascade else Sampler)(path, backend, precision, 1, max_batch=chosen.max_batch)
    app = create_app(sampler, Options(chosen, door or Door(), assets(studio=True)))
    place = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        served = Served(app, place.getsockname()[1])
        eventually(lambda: served.worker.ready or served.worker.failed, "the end of the warm-up")
        yield served
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        place.close()
    assert not thread.is_alive(), "the server did not end"


class Gate:
    """What holds the worker back: closed, no run begins."""

    def __init__(self, monkeypatch: Any) -> None:
        from engine.http import worker

        self._open, self.taken = threading.Event(), list[int]()
        run_all = worker.run_all

        def held(sampler: Sampler, answers: list[Answer], log: Any) -> int:
            self.taken.append(len(answers))
            assert self._open.wait(PATIENCE)
            return run_all(sampler, answers, log)

        self._open.set()
        monkeypatch.setattr(worker, "run_all", held)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()
