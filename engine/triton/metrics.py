"""The model's own counters at /metrics: how requests ended, how many runs they shared, and which budgets were kept.

Triton itself counts a Python model's error responses as successes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from engine.serving.answers import OUTCOMES
from engine.triton.answers import Answer

PROMISES = {True: "kept", False: "missed"}
REQUESTS = ("diffusevae_requests_total", "Requests by outcome: ok, refused, cancelled, late (no budget to be kept), failed")
RUNS = ("diffusevae_runs_total", "Runs of the sampler; each takes the samples of equal settings that came together")
BUDGETS = ("diffusevae_budgets_total", "Answered requests with a budget of time by what became of it: kept, missed")


class Metrics:
    """The counters of one instance; the server adds up those of equal labels."""

    def __init__(self, server: Any, model: str, version: str) -> None:
        def family(name: str, description: str) -> Any:
            return server.MetricFamily(name=name, description=description, kind=server.MetricFamily.COUNTER)

        labels = {"model": model, "version": version}
        self._families = [family(*REQUESTS), family(*RUNS), family(*BUDGETS)]  # they must outlive their counters
        requests, runs, budgets = self._families
        self._requests = {outcome: requests.Metric(labels={**labels, "outcome": outcome}) for outcome in OUTCOMES}
        self._runs = runs.Metric(labels=labels)
        self._budgets = {kept: budgets.Metric(labels={**labels, "outcome": word}) for kept, word in PROMISES.items()}

    def count(self, answers: Sequence[Answer], runs: int) -> None:
        """Add what one call of `execute` answered; each increment is a message to the server, so zeros are left out."""
        for outcome, number in Counter(answer.outcome for answer in answers).items():
            self._requests[outcome].increment(number)
        for kept, number in Counter(answer.kept for answer in answers if answer.kept is not None).items():
            self._budgets[kept].increment(number)
        if runs:
            self._runs.increment(runs)
