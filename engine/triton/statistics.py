"""What a running server has done: its own counters of a model, from the statistics endpoint, and its Prometheus metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.triton.local_server import LocalServer
from engine.triton.server_files import ServerError

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")
SAMPLE = re.compile(r'^(\w+)\{([^}]*)\} (\S+)$', re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Counters:
    """Sums since a model was loaded, or between two moments.

    requests    answered requests; the Python backend counts those that it answered with an error too
    samples     inferences: a request of n samples counts n
    executions  calls of the model; samples / executions is the mean batch
    seconds     of all requests together, by stage (STAGES)
    batches     executions by batch size
    """

    requests: int
    samples: int
    executions: int
    seconds: Mapping[str, float]
    batches: Mapping[int, int] = field(default_factory=dict)

    def since(self, before: Counters) -> Counters:
        """What was added after `before`."""
        batches = {size: count - before.batches.get(size, 0) for size, count in self.batches.items()}
        return Counters(
            self.requests - before.requests,
            self.samples - before.samples,
            self.executions - before.executions,
            {stage: self.seconds[stage] - before.seconds[stage] for stage in STAGES},
            {size: count for size, count in batches.items() if count},
        )

    @property
    def mean_batch(self) -> float:
        """Samples an execution."""
        return self.samples / self.executions if self.executions else 0.0


def counters(server: LocalServer, model: str) -> Counters:
    """The statistics of a loaded model."""
    path = f"/v2/models/{model}/stats"
    status, body = server.get(path)
    if status != 200:
        raise ServerError(f"{path}: found status {status} ({body[:200]!r}), expected 200; load the model first")
    (found,) = json.loads(body)["model_stats"]
    stages = found["inference_stats"]
    return Counters(
        int(stages["success"]["count"]),
        int(found["inference_count"]),
        int(found["execution_count"]),
        {stage: int(stages[stage]["ns"]) / 1e9 for stage in STAGES},
        {int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in found["batch_stats"]},
    )


def metrics(server: LocalServer, model: str) -> dict[str, float]:
    """The Prometheus metrics of a model; values of several reasons or versions are added up."""
    status, body = server.get("/metrics", metrics=True)
    if status != 200:
        raise ServerError(f"/metrics: found status {status}, expected 200; the server was started without metrics")
    found: dict[str, float] = {}
    for name, labels, value in SAMPLE.findall(body.decode()):
        if dict(LABEL.findall(labels)).get("model") == model:
            found[name] = found.get(name, 0.0) + float(value)
    return found
