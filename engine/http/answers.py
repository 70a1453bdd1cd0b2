"""An HTTP request on its way: what the worker's thread finds out goes to the event loop that serves its client."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engine.result import U8, Batch, StepInfo
from engine.serving import answers
from engine.serving.answers import Run
from engine.serving.asks import Ask


@dataclass(frozen=True)
class Step:
    """A step of the chain, in this stage of a cascade: what it makes of the samples so far, uint8 [n, H, W, C]."""

    step: int
    steps: int
    timestep: int
    images: U8
    stage: int = 0


class Answer(answers.Answer):
    """One request of a client's. `events` gets a Step after each step where they are shown, and None at the end.

    Made in the event loop; the worker's thread does the rest, but for `leave`.
    """

    def __init__(self, ask: Ask, arrived: float, *, shows_steps: bool) -> None:
        super().__init__(arrived)
        self.ask = ask
        self.events: asyncio.Queue[Step | None] = asyncio.Queue()
        self.batch: Batch | None = None  # of the last run that it took part in
        self.waited_ms = 0.0  # for its first run
        self.took_ms = 0.0
        self._loop = asyncio.get_running_loop()
        self.shows_steps = shows_steps
        self._left = False

    def leave(self) -> None:
        """Say that the client has gone."""
        self._left = True

    def gone(self) -> bool:
        """Whether it has."""
        return self._left

    def after_step(self, done: StepInfo, images: Mapping[int, U8]) -> None:
        """Show the client its images."""
        self._tell(Step(done.step, done.steps, done.timestep, np.stack(list(images.values())), done.stage))

    def take(self, ask: Ask, index: int, run: Run, row: int) -> None:
        """As every answer, and the run itself, for its timings."""
        super().take(ask, index, run, row)
        self.batch = run.batch

    def send(self) -> None:
        """Tell the event loop that nothing more will come."""
        self.took_ms = self.passed_ms()
        self._tell(None)

    def _tell(self, event: Step | None) -> None:
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)
