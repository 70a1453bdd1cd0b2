"""A soak of mixed sizes, cancels and bad inputs from several clients: the golden image afterwards is the golden image."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from engine import Sampler
from engine.triton.local_server import LocalServer
from tests.triton_server.client import PATIENCE, Client, count

SECONDS = 20.0
CLIENTS = 4
SETTINGS: list[dict[str, Any]] = [
    {}, {"steps": 2}, {"steps": 4}, {"steps": 2, "guidance": 0.5}, {"steps": 3, "t_start": 400},
]  # fmt: skip
SEEDS = range(6)
BAD: list[dict[str, Any]] = [{"steps": -1}, {"method": "no such"}, {"z": np.full((1, 24), np.nan)}, {"guidance": np.inf}]


@pytest.fixture(scope="module")
def expected(samplers: dict[str, Sampler]) -> dict[tuple[int, int], np.ndarray]:
    """The image of every setting and seed that the clients ask for."""
    images = {}
    for i, setting in enumerate(SETTINGS):
        batch = samplers["faces"].sample(seed=list(SEEDS), **setting)
        images |= {(i, seed): batch.images[seed] for seed in SEEDS}
    return images


def one_client(server: LocalServer, number: int, end: float, expected: dict[tuple[int, int], np.ndarray]) -> int:
    """Ask until `end`, each answer checked; the number of things asked."""
    rng, asked = random.Random(number), 0
    with Client("http" if number % 2 else "grpc", server) as client:
        while time.monotonic() < end:
            asked += 1
            dice = rng.random()
            if dice < 0.15:
                with pytest.raises(InferenceServerException, match=r"expected|at most|steps|guidance"):
                    client.sample("faces", [1], **rng.choice(BAD))
            elif dice < 0.3 and client.protocol == "grpc":
                cancel_one(client, rng)
            else:
                setting = rng.randrange(len(SETTINGS))
                seeds = [rng.choice(SEEDS) for _ in range(rng.choice((1, 1, 2, 3, 8)))]
                images = client.sample("faces", seeds, **SETTINGS[setting])["image"]
                for seed, image in zip(seeds, images, strict=True):
                    np.testing.assert_array_equal(image, expected[setting, seed])
    return asked


def cancel_one(client: Client, rng: random.Random) -> None:
    """Ask for a long run and give up; an answer that came before is none the worse."""
    done = threading.Event()
    count("grpc requests")
    count("requests cancelled")
    call = client.raw.async_infer("faces", client.inputs([1], {"steps": 200}), lambda result, error: done.set())
    time.sleep(rng.random() * 0.2)
    call.cancel()
    assert done.wait(PATIENCE)


def memory(pid: int) -> int:
    """Resident megabytes of the processes that a server started: its models."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                total += int((stat.parent / "statm").read_text().split()[1]) * 4096
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return total // 2**20


def test_soak(server: LocalServer, samplers: dict[str, Sampler], expected: dict[tuple[int, int], np.ndarray]) -> None:
    with Client("grpc", server) as client:
        client.sample("faces", list(range(8)), guidance=0.5)  # the largest shape there will be
    before, end = memory(server.pid), time.monotonic() + SECONDS
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = list(pool.map(lambda number: one_client(server, number, end, expected), range(CLIENTS)))
    assert min(asked) > 5, f"every client was to be served all the time: {asked}"
    with Client("http", server) as client:
        golden = client.sample("faces", [0], ("image", "z"))
    fresh = samplers["faces"].sample(seed=[0])
    np.testing.assert_array_equal(golden["image"], fresh.images)
    np.testing.assert_array_equal(golden["z"], fresh.values["z"])
    assert memory(server.pid) - before < 64, "megabytes that the models' processes grew by"
