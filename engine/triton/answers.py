"""Triton's request on its way to the response that is made of its results, or of its first error."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import ArgumentError
from engine.serving import answers
from engine.serving.asks import Ask
from engine.triton.samples import Reader
from engine.triton.tensors import KEPT, TOOK


class Answer(answers.Answer):
    """One request of the server's, and its response. Only those with a budget are sent before `execute` returns."""

    def __init__(self, request: Any, reader: Reader, server: Any, arrived: float) -> None:
        super().__init__(arrived)
        self.request = request
        self.server = server
        self.kept: bool | None = None  # whether it kept all its budgets, once its response is made
        try:
            self.ask = reader.read(self._tensors(reader), request.requested_output_names())
        except ArgumentError as error:
            self.error = error

    def gone(self) -> bool:
        """The server is asked each time."""
        return bool(self.request.is_cancelled())

    def send_if_complete(self) -> None:
        """As every answer, where it has a budget; the others go with the return of `execute`."""
        if self.ask is not None and self.ask.budgets:
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
