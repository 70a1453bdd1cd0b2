"""The model's own counters at /metrics: how requests ended, and how many runs they shared.

Triton itself counts a Python model's error responses as successes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from engine.triton.answers import Answer

OUTCOMES = ("ok", "refused", "cancelled", "failed")
REQUESTS = ("diffusevae_requests_total", "Requests by outcome: ok, refused (bad arguments), cancelled, failed")
RUNS = ("diffusevae_runs_total", "Runs of the sampler; each takes the samples of equal settings that came together")


class Metrics:
    """The counters of one instance; the server adds up those of equal labels."""

    def __init__(self, server: Any, model: str, version: str) -> None:
        def family(name: str, description: str) -> Any:
            return server.MetricFamily(name=name, description=description, kind=server.MetricFamily.COUNTER)

        labels = {"model": model, "version": version}
        self._families = [family(*REQUESTS), family(*RUNS)]  # they must outlive their counters
        requests, runs = self._families
        self._requests = {outcome: requests.Metric(labels={**labels, "outcome": outcome}) for outcome in OUTCOMES}
        self._runs = runs.Metric(labels=labels)

    def count(self, answers: Sequence[Answer], runs: int) -> None:
        """Add what one call of `execute` answered; each increment is a message to the server, so zeros are left out."""
        for outcome, number in Counter(answer.outcome for answer in answers).items():
            self._requests[outcome].increment(number)
        if runs:
            self._runs.increment(runs)
