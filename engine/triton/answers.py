"""Triton's request on its way to the response that is made of its results, or of its first error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.errors import ArgumentError
from engine.result import U8, StepInfo
from engine.serving import answers
from engine.serving.answers import Run
from engine.serving.asks import Ask
from engine.triton.samples import Reader, shows_steps
from engine.triton.tensors import FINAL, IMAGE, KEPT, STEP, TIMESTEP, TOOK


def progress(n: int, step: int, timestep: int, *, final: bool) -> dict[str, np.ndarray]:
    """The outputs that say which step a response is of, [n, 1] each."""
    told: dict[str, Any] = {STEP: np.int32(step), TIMESTEP: np.int32(timestep), FINAL: np.bool_(final)}
    return {name: np.full((n, 1), value) for name, value in told.items()}


class Answer(answers.Answer):
    """One request of the server's, and its response. Only those with a budget or of a model with previews (`streams`) are
    sent before `execute` returns."""

    def __init__(self, request: Any, reader: Reader, server: Any, arrived: float, streams: bool) -> None:
        super().__init__(arrived)
        self.streams = streams
        self._shown = -1  # the last step that was sent
        self._previews: dict[int, dict[int, U8]] = {}  # a step's images by sample, until all are there
        self.request = request
        self.server = server
        self.kept: bool | None = None  # whether it kept all its budgets, once its response is made
        try:
            self.ask = reader.read(self._tensors(reader), request.requested_output_names())
            self.shows_steps = shows_steps(self.ask.wanted)
        except ArgumentError as error:
            self.error = error

    def gone(self) -> bool:
        """The server is asked each time."""
        return bool(self.request.is_cancelled())

    def after_step(self, done: StepInfo, images: Mapping[int, U8]) -> None:
        """Send a step's preview when it is whole, but for the last step's, which is the response.

        A large batch runs in chunks, and a run in which another request broke the network comes again: what was sent is not
        sent twice.
        """
        if self.ask is None or done.step <= self._shown or done.step + 1 == done.steps or self.error is not None:
            return
        found = self._previews.setdefault(done.step, {})
        found.update(images)
        if len(found) < len(self.ask) or self.cancelled():
            return
        rows = {IMAGE: np.stack([found[i] for i in range(len(found))])}
        rows |= progress(len(found), done.step, done.timestep, final=False)
        tensors = [self.server.Tensor(name, array) for name, array in rows.items() if name in self.ask.wanted]
        self.request.get_response_sender().send(self.server.InferenceResponse(tensors))
        self._shown = done.step
        del self._previews[done.step]

    def take(self, ask: Ask, index: int, run: Run, row: int) -> None:
        """As every answer, and where there are previews which step it is: the last."""
        if self.streams:
            last = len(run.batch.timesteps) - 1
            told = progress(len(run.batch.images), last, int(run.batch.timesteps[last]), final=True)
            run = Run(run.batch, run.rows | told)
        super().take(ask, index, run, row)

    def send_if_complete(self) -> None:
        """As every answer, where it has a budget or streams; the others go with the return of `execute`."""
        if self.streams or (self.ask is not None and self.ask.budgets):
            super().send_if_complete()

    def send(self) -> None:
        """Send the response now."""
        final = self.server.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.request.get_response_sender().send(self.response(), flags=final)

    def response(self) -> Any:
        """What the server sends: results, or a sentence for people with a status that programs can act on."""
        if self.error is not None:
            codes = self.server.TritonError
            code = {
                "refused": codes.INVALID_ARG, "cancelled": codes.CANCELLED, "late": codes.UNAVAILABLE,
                "failed": codes.INTERNAL,
            }[self.outcome]  # fmt: skip
            return self.server.InferenceResponse([], codes(str(self.error), code))
        if self.ask is not None and self.ask.budgets:
            self._keep(self.ask)
        return self.server.InferenceResponse([self.server.Tensor(*item) for item in self.results.items()])

    def _keep(self, ask: Ask) -> None:
        """Book whether the budgets were kept: the response leaves now."""
        took = self.passed_ms()
        kept = np.array([[took <= budget.milliseconds] for budget in ask.budgets])
        self.kept = bool(kept.all())
        told = {TOOK: np.full(kept.shape, took, np.float32), KEPT: kept}
        self.results |= {name: told[name] for name in ask.wanted & set(told)}

    def _tensors(self, reader: Reader) -> dict[str, np.ndarray]:
        """The input tensors that the client sent."""
        found = {
            tensor.name: self.server.get_input_tensor_by_name(self.request, tensor.name) for tensor in reader.inputs
        }
        return {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
