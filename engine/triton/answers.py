"""A request on its way: its results, filled in sample by sample, or its first error, and the response made of them."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from engine.errors import ArgumentError, Cancelled, DeadlineError, EngineError
from engine.triton.samples import Ask, Reader
from engine.triton.tensors import KEPT, TOOK

Rows = dict[str, np.ndarray]  # an output's name: an array of a whole run, one row a sample
CANCELLED = "The client cancelled this request before its images were finished; nothing is wrong with it. Ask again."


class Answer:
    """One request on its way to a response; `arrived` is when, by `perf_counter`."""

    def __init__(self, request: Any, reader: Reader, server: Any, arrived: float) -> None:
        self.request = request
        self.server = server
        self.arrived = arrived
        self.sent = False
        self.kept: bool | None = None  # whether it kept all its budgets, once its response is made
        self._taken = 0
        self.ask: Ask | None = None
        self.error: EngineError | None = None
        self.results: dict[str, np.ndarray] = {}
        try:
            self.ask = reader.read(self._tensors(reader), request.requested_output_names())
        except ArgumentError as error:
            self.error = error

    def fail(self, error: EngineError) -> None:
        """Keep the first error: what follows from it would only confuse."""
        self.error = self.error or error

    def cancelled(self) -> bool:
        """Whether the client has gone or cancelled; the server is asked each time."""
        if self.request.is_cancelled():
            self.fail(Cancelled(CANCELLED))
            return True
        return False

    def take(self, ask: Ask, index: int, rows: Rows, row: int) -> None:
        """Take row `row` of a run as sample `index`; copies only what was asked for."""
        self._taken += 1
        for name in ask.wanted - {TOOK, KEPT}:
            found = rows[name]
            if name not in self.results:
                self.results[name] = np.empty((len(ask), *found.shape[1:]), found.dtype)
            self.results[name][index] = found[row]

    @property
    def outcome(self) -> str:
        """How it ended, in a word: ok, refused, cancelled or failed."""
        if self.error is None:
            return "ok"
        kinds = {ArgumentError: "refused", Cancelled: "cancelled", DeadlineError: "late"}
        return next((word for kind, word in kinds.items() if isinstance(self.error, kind)), "failed")

    def passed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return 1e3 * (perf_counter() - self.arrived)

    def send_if_complete(self) -> None:
        """Send the response now, while other requests of the call still run, where nothing of it is missing."""
        if not self.sent and self.ask is not None and (self.error is not None or self._taken == len(self.ask)):
            final = self.server.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self.request.get_response_sender().send(self.response(), flags=final)
            self.sent = True

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
