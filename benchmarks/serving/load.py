"""The load on a server, Triton's or our own: clients that ask again as soon as they are answered, every image compared."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import BenchmarkError

U8 = npt.NDArray[np.uint8]
HTTP = "http://"
HEADERS = {"Content-Type": "application/json", "Accept": "application/x-npy"}
PATIENCE = 120.0  # seconds after which a request counts as failed


@dataclass(frozen=True)
class Target:
    """What is asked for: a model at an address, with one sample of these seeds a request; and what must come back.

    address    of gRPC, or with http:// before it that of `diffusevae serve`
    tolerance  by how many levels of 255 a pixel may differ: 0 where a sample is the same bit for bit in any batch
    """

    address: str
    model: str
    expected: Mapping[int, U8]  # by seed, [H, W, 3]
    steps: int | None = None
    tolerance: int = 0


@dataclass
class Outcome:
    """What became of the requests of one turn: milliseconds of each good answer, and the errors."""

    milliseconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0  # from the common start to the last answer

    def add(self, other: Outcome) -> None:
        """Count another turn, or another client's part of this one."""
        self.milliseconds += other.milliseconds
        self.errors += other.errors
        self.seconds += other.seconds


def client_library() -> Any:
    """tritonclient's gRPC part."""
    try:
        import tritonclient.grpc as library
    except ImportError as error:
        raise BenchmarkError(
            f"serving: found no tritonclient ({error}), expected it; install it with: pip install 'tritonclient[grpc]'"
        ) from error
    return library


class Client(ABC):
    """One connection that asks for one sample at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @classmethod
    def of(cls, target: Target) -> Client:
        """A client for the target's kind of server."""
        return HttpClient(target) if target.address.startswith(HTTP) else TritonClient(target)

    @abstractmethod
    def fault(self, seed: int) -> str | None:
        """Ask for one image; what is wrong with the answer, None for a good one."""

    @abstractmethod
    def close(self) -> None:
        """Hang up."""

    def compare(self, seed: int, image: U8) -> str | None:
        """What is wrong with an image."""
        difference = np.abs(image.astype(np.int16) - self._target.expected[seed])
        if difference.max() > self._target.tolerance:
            return f"the image of seed {seed} differs by {difference.max()} of 255"
        return None


class HttpClient(Client):
    """One kept connection to `diffusevae serve`."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._connection = http.client.HTTPConnection(target.address.removeprefix(HTTP), timeout=PATIENCE)

    def fault(self, seed: int) -> str | None:
        """As every client."""
        body = json.dumps({"seed": seed} | ({} if self._target.steps is None else {"steps": self._target.steps}))
        self._connection.request("POST", "/v1/sample", body, HEADERS)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            return f"{answer.status}: {data[:200].decode(errors='replace')}"
        return self.compare(seed, np.load(io.BytesIO(data))[0])

    def close(self) -> None:
        """As every client."""
        self._connection.close()


class TritonClient(Client):
    """One gRPC connection to Triton."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._library = client_library()
        # A connection of its own: clients of one process would share one otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._raw = self._library.InferenceServerClient(target.address, channel_args=options)
        self._raw.is_server_live()
        self._wanted = [self._library.InferRequestedOutput("image")]

    def fault(self, seed: int) -> str | None:
        """As every client."""
        tensors = [self._tensor("seed", np.array([[seed]], np.int64), "INT64")]
        if self._target.steps is not None:
            tensors.append(self._tensor("steps", np.array([[self._target.steps]], np.int32), "INT32"))
        try:
            answer = self._raw.infer(self._target.model, tensors, outputs=self._wanted, client_timeout=PATIENCE)
        except self._library.InferenceServerException as error:
            return str(error)
        return self.compare(seed, answer.as_numpy("image")[0])

    def close(self) -> None:
        """As every client."""
        self._raw.close()

    def _tensor(self, name: str, values: np.ndarray, kind: str) -> Any:
        tensor = self._library.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        return tensor


def check(target: Target) -> None:
    """Ask for every seed, several at once, so that batches form; BenchmarkError unless all images are right."""
    seeds = list(target.expected)
    parts = [seeds[i::8] for i in range(8)]
    with ThreadPoolExecutor(len(parts)) as pool:
        faults = [fault for found in pool.map(lambda part: _faults(target, part), parts) for fault in found]
    if faults:
        raise BenchmarkError(
            f"{target.model}: found that {len(faults)} of {len(seeds)} answers are not what Sampler makes ({faults[0]}), "
            f"expected the same images before anything is timed; serve the same bundle on the same machine"
        )


def _faults(target: Target, seeds: Sequence[int]) -> list[str]:
    client = Client.of(target)
    try:
        return [fault for fault in map(client.fault, seeds) if fault is not None]
    finally:
        client.close()


def drive(target: Target, clients: int, seconds: float) -> Outcome:
    """Let `clients` ask as fast as they are answered; none asks again once `seconds` have passed."""
    ready = threading.Barrier(clients + 1)
    begin = threading.Event()
    limits = [0.0]

    def run(number: int) -> tuple[Outcome, float]:
        client, part = Client.of(target), Outcome()
        seeds = list(target.expected)
        turn = number * 7  # clients ask for different images at a time
        try:
            ready.wait(PATIENCE)
            begin.wait(PATIENCE)
            now = time.perf_counter()
            while now < limits[0]:
                fault = client.fault(seeds[turn % len(seeds)])
                before, now, turn = now, time.perf_counter(), turn + 1
                if fault is None:
                    part.milliseconds.append(1e3 * (now - before))
                else:
                    part.errors.append(fault)
            return part, now
        finally:
            client.close()

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(run, number) for number in range(clients)]
        ready.wait(PATIENCE)
        started = time.perf_counter()
        limits[0] = started + seconds
        begin.set()
        parts = [future.result() for future in running]
    total = Outcome()
    for part, _ in parts:
        total.add(part)
    total.seconds = max(ended for _, ended in parts) - started
    return total
