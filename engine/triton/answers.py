"""A request on its way: its results, filled in sample by sample, or its first error, and the response made of them."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from engine.errors import ArgumentError, Cancelled, DeadlineError, EngineError
from engine.result import StepInfo
from engine.triton.samples import Ask, Reader
from engine.triton.tensors import FINAL, IMAGE, KEPT, STEP, TIMESTEP, TOOK

Rows = dict[str, np.ndarray]  # an output's name: an array of a whole run, one row a sample
CANCELLED = "The client cancelled this request before its images were finished; nothing is wrong with it. Ask again."


def progress(n: int, step: int, timestep: int, *, final: bool) -> Rows:
    """The outputs that say which step a response is of, [n, 1] each."""
    told: dict[str, Any] = {STEP: np.int32(step), TIMESTEP: np.int32(timestep), FINAL: np.bool_(final)}
    return {name: np.full((n, 1), value) for name, value in told.items()}


class Answer:
    """One request on its way to a response; `arrived` is when, by `perf_counter`; `streams`: of a model with previews."""

    def __init__(self, request: Any, reader: Reader, server: Any, arrived: float, streams: bool) -> None:
        self.request = request
        self.server = server
        self.arrived = arrived
        self.streams = streams
        self.sent = False
        self.kept: bool | None = None  # whether it kept all its budgets, once its response is made
        self._taken = 0
        self._shown = -1  # the last step that was sent
        self._previews: dict[int, dict[int, np.ndarray]] = {}  # a step's images by sample, until all are there
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

    @property
    def at_once(self) -> bool:
        """Whether the response leaves while other requests of the call still run."""
        return self.streams or (self.ask is not None and bool(self.ask.budgets))

    def show(self, info: StepInfo, index: int, image: np.ndarray) -> None:
        """Take sample `index` of a step's preview, and send that when it is whole.

        A large batch runs in chunks, and a run in which another request broke the network comes again: what was sent is not
        sent twice.
        """
        if self.ask is None or info.step <= self._shown or self.error is not None:
            return
        found = self._previews.setdefault(info.step, {})
        found[index] = image
        if len(found) < len(self.ask) or self.cancelled():
            return
        rows = {IMAGE: np.stack([found[i] for i in range(len(found))])}
        rows |= progress(len(found), info.step, info.timestep, final=False)
        tensors = [self.server.Tensor(name, array) for name, array in rows.items() if name in self.ask.wanted]
        self.request.get_response_sender().send(self.server.InferenceResponse(tensors))
        self._shown = info.step
        del self._previews[info.step]

    def send_if_complete(self) -> None:
        """Send the response now, while other requests of the call still run, where nothing of it is missing."""
        if self.error is not None or (self.ask is not None and self._taken == len(self.ask)):
            self.send()

    def send(self) -> None:
        """Send the response, unless it was sent."""
        if not self.sent:
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
