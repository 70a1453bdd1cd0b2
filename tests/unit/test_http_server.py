"""The server under load and under attack: shared runs, overload, clients that leave, hosts, origins and tokens, a soak."""

from __future__ import annotations

import json
import logging.handlers
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from engine.errors import ArgumentError, EngineError, NumericsError
from engine.http import cli
from engine.http.answers import Answer
from engine.http.app import create_app
from engine.http.guard import Door, check_address
from engine.http.limits import Limits
from tests.http_served import EVENTS, JSON, PATIENCE, PNG, Gate, Served, edited, eventually, lone, serving
from tests.samplers import bundle
from tests.unit.test_http_answers import BAD

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123"
SOAK = int(os.environ.get("DIFFUSEVAE_SOAK", "300"))  # requests; 10,000 by hand


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(edited(), max_queue=4) as found:
        yield found


@pytest.fixture(scope="module")
def guarded() -> Iterator[Served]:
    door = Door(hosts=("faces.example",), origins=("https://tools.example",), token=TOKEN, public=("/",))
    with serving(edited(), door) as found:
        yield found


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.open()


def hold(served: Served, gate: Gate, pool: ThreadPoolExecutor, *bodies: dict[str, Any]) -> list[Any]:
    """Futures of requests of which the first is in a run that does not begin, and the others wait in this order."""
    gate.close()
    turns, futures = len(gate.taken), []
    for number, body in enumerate(bodies):
        futures.append(pool.submit(served.ask, "sample", body))
        eventually(lambda number=number: len(gate.taken) > turns and len(served.worker._waiting) == number, "the queue")
    return futures


class TestRuns:
    def test_requests_that_wait_together_run_together_with_the_bits_of_a_lone_run(self, served: Served, gate: Gate) -> None:
        bodies = [{"seed": 1}, {"seed": [2, 3]}, {"seed": 4, "edits": {"beard": 1.0}}, {"seed": 5, "steps": 2}]
        with ThreadPoolExecutor(4) as pool, lone(edited()) as alone:
            runs = served.counted("diffusevae_runs_total")
            futures = hold(served, gate, pool, *bodies)
            gate.open()
            replies = [future.result(PATIENCE) for future in futures]
            assert [reply.headers["diffusevae-batch"] for reply in replies] == ["1", "3", "3", "1"]
            assert served.counted("diffusevae_runs_total") == runs + 3
            for body, reply in zip(bodies, replies, strict=True):
                np.testing.assert_array_equal(reply.array, alone.sample(**body).images)

    def test_a_run_that_breaks_the_network_fails_with_a_sentence(self) -> None:
        with serving(bundle("nan")) as broken:
            assert isinstance(broken.worker.failed, EngineError)
            status, message = broken.ask("sample", {"seed": 1}).refusal
            assert (status, "warm-up" in message) == (503, True)
            assert broken.send("GET", "/readyz").status == 503

    def test_a_request_whose_numbers_break_it_fails_alone(
        self, served: Served, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sample = served.worker.sampler.sample

        def breaks(**options: Any) -> Any:
            if 13 in options["seed"]:
                raise NumericsError("denoiser made NaN at step 0")
            return sample(**options)

        monkeypatch.setattr(served.worker.sampler, "sample", breaks)
        with ThreadPoolExecutor(3) as pool:
            futures = hold(served, gate, pool, {"seed": 1}, {"seed": 13}, {"seed": 2})
            gate.open()
            assert [future.result(PATIENCE).status for future in futures] == [200, 500, 200]

    def test_a_fault_of_the_server_s_is_told_and_the_next_request_is_answered(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(served.worker.sampler, "sample", lambda **_: 1 // 0)
        status, message = served.ask("sample", {"seed": 1}).refusal
        assert (status, "a fault of the server's" in message) == (500, True)
        monkeypatch.undo()
        assert served.ask("sample", {"seed": 1}).status == 200


class TestOverload:
    def test_a_full_queue_is_refused_at_once(self, served: Served, gate: Gate) -> None:
        with ThreadPoolExecutor(5) as pool:
            futures = hold(served, gate, pool, *({"seed": seed} for seed in range(5)))
            times = []
            for _ in range(20):
                began = time.perf_counter()
                reply = served.ask("sample", b"x" * 100_000)  # it is not even read
                times.append(time.perf_counter() - began)
                assert (reply.status, int(reply.headers["retry-after"]) >= 1) == (429, True)
            assert "found 4 requests waiting, expected fewer than 4" in reply.refusal[1]
            assert min(times) < 0.01  # the others may have had a busy neighbour
            gate.open()
            assert [future.result(PATIENCE).status for future in futures] == [200] * 5
        assert served.counted("diffusevae_requests_total", verb="sample", outcome="overload") >= 20
        assert served.worker.waiting == 0

    def test_an_answer_that_takes_too_long(self, gate: Gate) -> None:
        with serving(edited(), timeout=0.2) as hasty:
            gate.close()
            status, message = hasty.ask("sample", {"seed": 1}).refusal
            assert (status, "no answer within 0.2 s" in message) == (504, True)
            said = hasty.ask("sample", {"seed": 1}, EVENTS).data
            assert said.startswith(b"event: error\ndata: ")
            gate.open()
            slow = socket.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE)
            head = f"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: 9\r\n\r\n"
            slow.sendall(head.encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
            slow.close()


class TestClientsThatLeave:
    def test_one_that_waits_costs_no_run(self, served: Served, gate: Gate) -> None:
        def cancelled() -> float:
            return served.counted("diffusevae_requests_total", verb="sample", outcome="cancelled")

        before, runs = cancelled(), served.counted("diffusevae_runs_total")
        with ThreadPoolExecutor(1) as pool:
            (first,) = hold(served, gate, pool, {"seed": 1})
            gone = [served.open("sample", {"seed": 2}, accept) for accept in (PNG, EVENTS)]
            eventually(lambda: len(served.worker._waiting) == 2, "the requests")
            answers = list(served.worker._waiting)
            for place in gone:
                place.close()
            eventually(lambda: all(answer.gone() for answer in answers), "the notice that their clients have gone")
            gate.open()
            assert first.result(PATIENCE).status == 200
        eventually(lambda: cancelled() == before + 2, "the end of both")
        assert served.counted("diffusevae_runs_total") == runs + 1

    def test_one_that_leaves_during_its_run_ends_it(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        asked, began, gone = list[bool](), threading.Event(), Answer.gone

        def after_each_step(answer: Answer) -> bool:
            if asked:  # the first question comes before the run
                began.set()
                eventually(lambda: gone(answer), "the end of the connection")
            asked.append(gone(answer))
            return asked[-1]

        monkeypatch.setattr(Answer, "gone", after_each_step)
        place = served.open("sample", {"seed": 1, "steps": 30})
        assert began.wait(PATIENCE)
        place.close()
        eventually(lambda: served.worker.waiting == 0 and len(asked) == 2, "the end of the run")
        monkeypatch.undo()
        assert served.ask("sample", {"seed": 1}).status == 200
        assert asked == [False, True]


class TestDoor:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"Host": "localhost:8080"}, 200),
            ({"Host": "[::1]:8080"}, 200),
            ({"Host": "10.1.2.3"}, 200),
            ({"Host": "faces.example"}, 200),
            ({"Host": "rebound.example"}, 403),
            ({"Host": "localhost.rebound.example"}, 403),
            ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
            ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
            ({"Origin": "https://tools.example"}, 200),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Authorization": "Bearer 0123456789abcdef012"}, 401),
            ({"Authorization": f"Basic {TOKEN}"}, 401),
            ({"Authorization": ""}, 401),
        ],
    )
    def test_who_may_ask(self, headers: dict[str, str], status: int, guarded: Served) -> None:
        reply = guarded.ask("sample", {"seed": 1}, **{"Authorization": f"Bearer {TOKEN}", **headers})
        assert reply.status == status
        if status != 200:
            assert "expected" in reply.refusal[1]
        if headers.get("Origin") == "https://tools.example":
            assert reply.headers["access-control-allow-origin"] == "https://tools.example"

    def test_probes_and_the_page_need_no_token(self, guarded: Served) -> None:
        found = [guarded.send("GET", path).status for path in ("/healthz", "/readyz", "/", "/metrics")]
        assert found == [200, 200, 200, 401]

    @pytest.mark.parametrize(
        ("host", "token", "said"),
        [("0.0.0.0", None, "without a token"), ("a.example", None, "without a"), ("127.0.0.1", "short", "5 characters")],
    )
    def test_addresses_that_are_refused(self, host: str, token: str | None, said: str) -> None:
        with pytest.raises(ArgumentError, match=said):
            check_address(host, token)

    def test_addresses_that_are_taken(self) -> None:
        for host, token in (("127.0.0.1", None), ("::1", None), ("localhost", None), ("0.0.0.0", TOKEN)):
            check_address(host, token)


class TestCommand:
    def test_it_serves_until_ctrl_c(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "engine", "studio", str(edited()), "--port", "0", "--threads", "1"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        port = int(lines[1].split()[1].rpartition(":")[2])
        waiting = Served.__new__(Served)
        waiting.port = port
        eventually(lambda: waiting.send("GET", "/readyz").status == 200, "readiness")
        assert b"studio.js" in waiting.send("GET", "/").data
        process.send_signal(signal.SIGINT)
        assert (process.wait(PATIENCE), "Traceback" in process.communicate()[1]) == (130, False)

    @pytest.mark.parametrize(
        ("limits", "said"),
        [({"max_batch": 0}, "choose another --max-batch"), ({"timeout": 0.0}, "--timeout"), ({"max_steps": 2}, "is 4")],
    )
    def test_limits_that_cannot_be(self, limits: dict[str, Any], said: str) -> None:
        from engine.http.app import Options

        with lone(edited()) as sampler, pytest.raises(ArgumentError, match=said):
            create_app(sampler, Options(Limits(**{"max_steps": 50, **limits})))

    def test_answers_do_not_wait_for_acknowledgements(self) -> None:
        with cli.listen("127.0.0.1", 0) as place, socket.create_connection(place.getsockname()):
            accepted, _ = place.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    def test_a_port_that_is_taken_and_a_token_that_is_not_there(self, tmp_path: Path) -> None:
        with cli.listen("127.0.0.1", 0) as place, pytest.raises(ArgumentError, match="choose another --port"):
            cli.listen("127.0.0.1", place.getsockname()[1])
        with pytest.raises(ArgumentError, match="openssl rand -hex 32"):
            cli.read_token(str(tmp_path / "none"))


def test_a_soak_of_good_and_bad_requests_and_killed_clients(served: Served) -> None:
    settings: list[dict[str, Any]] = [{}, {"steps": 2}, {"steps": 3, "t_start": 300}, {"edits": {"beard": 1.0}}]
    with lone(edited()) as alone:
        golden = [alone.sample(seed=list(range(6)), **setting).images for setting in settings]

    def client(number: int) -> int:
        rng, good = random.Random(number), 0
        for _ in range(SOAK // 4):
            dice = rng.random()
            if dice < 0.2:
                verb, body, _ = BAD[rng.choice(sorted(set(BAD) - {"a huge bomb"}))]
                assert served.ask(verb, body).status in (400, 429)
            elif dice < 0.35:
                missing = 5 if dice > 0.32 else 0
                place = served.open("sample", {"n": 8, "steps": 20}, rng.choice((PNG, JSON, EVENTS)), missing)
                if dice < 0.25:
                    place.recv(10)
                place.close()
            else:
                which, seeds = rng.randrange(len(settings)), [rng.randrange(6) for _ in range(rng.choice((1, 1, 2, 8)))]
                reply = served.ask("sample", {"seed": seeds, **settings[which]})
                if reply.status == 200:
                    good += 1
                    np.testing.assert_array_equal(reply.array, golden[which][seeds])
                assert reply.status in (200, 429)
        return good

    faults = logging.handlers.QueueHandler(queue.SimpleQueue())
    logging.getLogger("uvicorn.error").addHandler(faults)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(client, range(4))) > SOAK // 8
    eventually(lambda: served.worker.waiting == 0, "the end of the queue")
    logging.getLogger("uvicorn.error").removeHandler(faults)
    assert faults.queue.empty()
    for setting, images in zip(settings, golden, strict=True):
        np.testing.assert_array_equal(served.ask("sample", {"seed": list(range(6)), **setting}).array, images)
    assert json.loads(served.ask("sample", {"seed": 0}, JSON).data)["timings"]["batch"] == 1
