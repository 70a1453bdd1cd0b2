"""One client for both protocols, and a count of everything that was asked of a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from engine.triton.local_server import LocalServer
from engine.triton.statistics import Counters, counters

MODULES = {"http": http_client, "grpc": grpc_client}
PROTOCOLS = tuple(MODULES)
PATIENCE = 60.0
KINDS = {
    "seed": ("INT64", np.int64), "z": ("FP32", np.float32), "steps": ("INT32", np.int32), "t_start": ("INT32", np.int32),
    "guidance": ("FP32", np.float32), "eta": ("FP32", np.float32), "temperature": ("FP32", np.float32),
    "method": ("BYTES", np.object_), "spacing": ("BYTES", np.object_), "label": ("INT64", np.int64),
    "style": ("FP32", np.float32), "setting": ("BYTES", np.object_), "budget_ms": ("FP32", np.float32),
    "at_most": ("BOOL", np.bool_), "edits": ("BYTES", np.object_),
    "guide_scale": ("FP32", np.float32), "guide_mode": ("BYTES", np.object_), "guide_interval": ("INT32", np.int32),
    "steps_2": ("INT32", np.int32), "noise_level_2": ("INT32", np.int32), "guidance_2": ("FP32", np.float32),
}  # fmt: skip

_counts: Counter[str] = Counter()
_counting = Lock()
T = TypeVar("T")


def count(what: str, n: int = 1) -> None:
    """Note that something was asked of a server."""
    with _counting:
        _counts[what] += n


def counted() -> dict[str, int]:
    """Everything that was noted, by name."""
    return dict(sorted(_counts.items()))


class Client:
    """One connection; serves one thread. `raw` is tritonclient's own."""

    def __init__(self, protocol: str, server: LocalServer) -> None:
        self.protocol = protocol
        self.module = MODULES[protocol]
        if protocol == "http":
            self.raw = http_client.InferenceServerClient(server.http, network_timeout=PATIENCE, connection_timeout=PATIENCE)
        else:
            # A connection of its own: clients of one process would share one otherwise.
            options = [("grpc.use_local_subchannel_pool", 1)]
            self.raw = grpc_client.InferenceServerClient(server.grpc, channel_args=options)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def tensor(self, name: str, values: np.ndarray, kind: str) -> Any:
        """An input of any name, shape and type."""
        tensor = self.module.InferInput(name, list(values.shape), kind)
        tensor.set_data_from_numpy(values)
        return tensor

    def inputs(self, seeds: Sequence[int], options: dict[str, Any]) -> list[Any]:
        """The tensors of a request: every option is one value, the same for all samples, or [n, …] values."""
        n, found = len(seeds), []
        for name, value in {"seed": np.array(seeds, np.int64), **options}.items():
            kind, dtype = KINDS[name]
            values = np.asarray(value, dtype)
            values = np.full((n, 1), value, dtype) if values.ndim == 0 else values.reshape(n, -1)
            found.append(self.tensor(name, values, kind))
        return found

    def sample(
        self, model: str, seeds: Sequence[int], outputs: Sequence[str] = ("image",), **options: Any
    ) -> dict[str, np.ndarray]:
        """Ask and wait; the requested outputs by name. InferenceServerException where the server refuses."""
        wanted = [self.module.InferRequestedOutput(name) for name in outputs]
        answer = self.infer(model, self.inputs(seeds, options), wanted)
        count("samples received", len(seeds))
        return {name: answer.as_numpy(name) for name in outputs}

    def infer(self, model: str, inputs: list[Any], outputs: list[Any] | None = None) -> Any:
        """Ask with any tensors at all."""
        count(f"{self.protocol} requests")
        limit = {"client_timeout": PATIENCE} if self.protocol == "grpc" else {}
        try:
            return self.raw.infer(model, inputs, outputs=outputs, **limit)
        except InferenceServerException:
            count("requests refused or failed")
            raise


def at_once(server: LocalServer, protocol: str, jobs: Sequence[Callable[[Client], T]]) -> list[T | InferenceServerException]:
    """Run every job in a thread with a client of its own, all let go at the same moment; results or refusals in order."""
    ready = Barrier(len(jobs))

    def run(job: Callable[[Client], T]) -> T | InferenceServerException:
        with Client(protocol, server) as client:
            client.raw.is_server_live()  # connected before the start
            ready.wait(PATIENCE)
            try:
                return job(client)
            except InferenceServerException as error:
                return error

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def added_by(server: LocalServer, model: str, before: Counters, requests: int) -> Counters:
    """What the server counted since, once it has counted this many requests: it answers first and counts then."""
    server.wait_until(lambda: counters(server, model).since(before).requests >= requests, "count of the requests", 10)
    return counters(server, model).since(before)
