"""Prometheus metrics: how requests ended and how long they took, the runs that they shared, the queue, and budgets kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from engine.http.answers import Answer

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The metrics of one server, under the names that Triton's model has where they mean the same."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        labels, registry = ["verb", "outcome"], self._registry
        self._requests = Counter("diffusevae_requests", "Requests by verb and outcome", labels, registry=registry)
        self._seconds = Histogram(
            "diffusevae_request_seconds", "Seconds from arrival to answer", ["verb"], registry=registry, buckets=SECONDS
        )
        self._waited = Counter("diffusevae_queue_seconds", "Seconds that requests waited for a run", registry=registry)
        self._ran = Counter("diffusevae_run_seconds", "Seconds that requests' runs took", registry=registry)
        self._runs = Counter("diffusevae_runs", "Runs of the sampler, each of samples that came together", registry=registry)
        self._images = Counter("diffusevae_images", "Images that were answered", registry=registry)
        self._budgets = Counter("diffusevae_budgets", "Budgets of time by outcome", ["outcome"], registry=registry)
        queue = Gauge("diffusevae_queue", "Requests that are read or wait for a run", registry=registry)
        queue.set_function(waiting)

    def refused(self, verb: str, outcome: str) -> None:
        """Count a request that never waited for a run: refused, or one of the overload."""
        self._requests.labels(verb, outcome).inc()

    def count(self, answers: Sequence[Answer], runs: int) -> None:
        """Count what one turn of the worker answered."""
        self._runs.inc(runs)
        for answer in answers:
            if answer.ask is None:
                continue
            self._requests.labels(answer.ask.verb, answer.outcome).inc()
            self._seconds.labels(answer.ask.verb).observe(answer.took_ms / 1e3)
            self._waited.inc(answer.waited_ms / 1e3)
            if answer.batch is not None:
                self._ran.inc(answer.batch.timings.total_ms / 1e3)
            if answer.error is None:
                self._images.inc(len(answer.ask))
                for budget in answer.ask.budgets[:1]:
                    self._budgets.labels("kept" if answer.took_ms <= budget.milliseconds else "missed").inc()

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
