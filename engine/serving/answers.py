"""A request on its way: its results, filled in sample by sample, or its first error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from engine.errors import ArgumentError, Cancelled, DeadlineError, EngineError
from engine.result import U8, Batch, StepInfo
from engine.serving.asks import Ask

OUTCOMES = ("ok", "refused", "cancelled", "late", "failed")
KINDS = {ArgumentError: "refused", Cancelled: "cancelled", DeadlineError: "late"}
CANCELLED = "The client cancelled this request before its images were finished; nothing is wrong with it. Ask again."


@dataclass(frozen=True)
class Run:
    """A finished run: the batch, and its outputs by name, one row a sample."""

    batch: Batch
    rows: dict[str, np.ndarray]


class Answer(ABC):
    """One request on its way to a response; `arrived` is when, by `perf_counter`.

    `ask` is None where the request could not be read, and then `error` says why. `shows_steps`: its client wants the images
    of every step.
    """

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived
        self.sent = self.shows_steps = False
        self.ask: Ask | None = None
        self.error: EngineError | None = None
        self.results: dict[str, np.ndarray] = {}
        self._taken = 0

    @abstractmethod
    def gone(self) -> bool:
        """Whether the client has gone or cancelled."""

    @abstractmethod
    def send(self) -> None:
        """Send the response, or the error."""

    @abstractmethod
    def after_step(self, done: StepInfo, images: Mapping[int, U8]) -> None:
        """A step of its run was made, with these images of its samples, uint8 [H, W, C] each; where it shows steps."""

    def fail(self, error: EngineError) -> None:
        """Keep the first error: what follows from it would only confuse."""
        self.error = self.error or error

    def cancelled(self) -> bool:
        """Whether the client has gone, which is an error from now on."""
        if self.gone():
            self.fail(Cancelled(CANCELLED))
            return True
        return False

    def take(self, ask: Ask, index: int, run: Run, row: int) -> None:
        """Take row `row` of a run as sample `index`; copies only what was asked for."""
        self._taken += 1
        for name in ask.wanted & set(run.rows):
            found = run.rows[name]
            if name not in self.results:
                self.results[name] = np.empty((len(ask), *found.shape[1:]), found.dtype)
            self.results[name][index] = found[row]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing: every sample is there, or an error is."""
        return self.error is not None or (self.ask is not None and self._taken == len(self.ask))

    @property
    def outcome(self) -> str:
        """How it ended, one of OUTCOMES."""
        if self.error is None:
            return "ok"
        return next((word for kind, word in KINDS.items() if isinstance(self.error, kind)), "failed")

    def passed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return 1e3 * (perf_counter() - self.arrived)

    def send_if_complete(self) -> None:
        """Send the response now, while other requests of the call still run, where nothing of it is missing."""
        if not self.sent and self.complete:
            self.sent = True
            self.send()
