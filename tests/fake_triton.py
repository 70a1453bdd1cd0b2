"""A stand-in for `triton_python_backend_utils`, which only a server has: what a Python model sees of Triton."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engine.bundle.reader import Bundle
from engine.stages import followed
from engine.triton.config import model_config
from engine.triton.serving import Serving, settle

MODULE = "triton_python_backend_utils"
COMPLETE_FINAL = 1


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> Tensor:
        return cls(name, np.from_dlpack(array))

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    """A status and a sentence."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class TritonModelException(Exception):
    """What a model raises to the server."""


class InferenceResponse:
    """Outputs, or an error."""

    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._outputs, self._error = output_tensors, error

    def error(self) -> TritonError | None:
        return self._error

    def arrays(self) -> dict[str, np.ndarray]:
        """The outputs by name; fails the test when there is an error instead."""
        assert self._error is None, self._error.message()
        return {tensor.name(): tensor.as_numpy() for tensor in self._outputs}

    def refusal(self) -> tuple[int, str]:
        """Status and sentence; fails the test when there is none."""
        assert self._error is not None
        assert self._outputs == []
        return self._error.code(), self._error.message()


class Request:
    """A client's request; `cancelled` is asked each time that the model asks."""

    def __init__(
        self,
        outputs: Iterable[str] = ("image", "recon", "z"),
        cancelled: Callable[[], bool] = lambda: False,
        **inputs: np.ndarray,
    ) -> None:
        self._inputs = {name: Tensor(name, array) for name, array in inputs.items()}
        self._outputs, self.is_cancelled = list(outputs), cancelled
        self.sent: list[InferenceResponse] = []
        self.final = False

    def inputs(self) -> list[Tensor]:
        return list(self._inputs.values())

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def get_response_sender(self) -> Request:
        return self

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        """What the sender does: any number of responses, and nothing after the final one."""
        assert not self.final
        self.final = flags == COMPLETE_FINAL
        self.sent.append(response)


class Logger:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log_info(self, text: str) -> None:
        self.lines.append(text)

    def log_verbose(self, text: str) -> None:
        """Not kept, as a server that is not verbose keeps none."""


class Metric:
    """A counter."""

    def __init__(self) -> None:
        self.value = 0

    def increment(self, number: int) -> None:
        assert number > 0
        self.value += number


class MetricFamily:
    """Counters by their labels, kept by name in the server."""

    COUNTER = 0

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert (bool(description), kind) == (True, self.COUNTER)
        self.name, self.metrics = name, dict[tuple[str, ...], Metric]()

    def Metric(self, labels: dict[str, str]) -> Metric:
        return self.metrics.setdefault(tuple(labels.values()), Metric())


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


@contextmanager
def server() -> Iterator[Any]:
    """The module, importable as in a server."""
    module: Any = ModuleType(MODULE)
    for thing in (Tensor, TritonError, TritonModelException, InferenceResponse, MetricFamily, get_input_tensor_by_name):
        setattr(module, thing.__name__, thing)
    module.Logger, module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = Logger(), COMPLETE_FINAL
    before = dict(sys.modules)
    sys.modules[MODULE] = module
    try:
        yield module
    finally:
        sys.modules.pop(MODULE)
        if MODULE in before:
            sys.modules[MODULE] = before[MODULE]


def arguments(model: Path, chosen: Serving | None = None, **changes: Any) -> dict[str, str]:
    """What a server hands to `initialize` for a model written with these choices; `changes` to its configuration."""
    bundle, *later = followed(Bundle.open(model / "1" / "bundle"))
    settled = settle(bundle, chosen or Serving(), later)
    config = as_json(model_config(bundle.manifest, settled, [stage.manifest for stage in later])) | changes
    return {
        "model_config": json.dumps(config),
        "model_name": model.name,
        "model_version": "1",
        "model_repository": str(model),
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_instance_name": f"{model.name}_0",
    }


def as_json(value: Any) -> Any:
    """A configuration as a server's JSON has it: maps are objects there."""
    if isinstance(value, Mapping):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and set(one) == {"key", "value"} for one in value):
        return {one["key"]: as_json(one["value"]) for one in value}
    return [as_json(one) for one in value] if isinstance(value, (list, tuple)) else value
