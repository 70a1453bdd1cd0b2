"""How does ONNX Runtime run a graph on the CPU in float32?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.base import Arrays, Graph, check_precision, check_tensors, read_onnx
from engine.bundle import Bundle
from engine.errors import BackendError
from engine.manifest import GraphSpec
from engine.threads import resolve_threads

NAME = "onnxruntime"
PRECISIONS = ("f32",)
_PROVIDER = "CPUExecutionProvider"
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def load(bundle: Bundle, role: str, *, precision: str = "f32", threads: int | None = None) -> OrtGraph:
    """Load a graph of a verified bundle; BackendError when the runtime is missing, or refuses graph or precision."""
    check_precision(precision, PRECISIONS, NAME)
    count = resolve_threads(threads)
    data = read_onnx(bundle, role)
    try:
        session = open_session(data, count)
        tensors = {
            tensor.name: (_DTYPES.get(tensor.type, tensor.type), tensor.shape)
            for tensor in (*session.get_inputs(), *session.get_outputs())
        }
    except native_failures() as error:
        raise BackendError(
            f"onnxruntime {_import().__version__}, graph {role!r} of {bundle.path}: found {type(error).__name__}: {error}; "
            f"expected a graph that it can load; upgrade onnxruntime, or rebuild the bundle"
        ) from error
    check_tensors(bundle, role, tensors)
    return OrtGraph(role, bundle.spec(role), count, session)


def open_session(data: bytes, threads: int) -> Any:
    """An InferenceSession over an ONNX model's bytes, on the CPU provider, as every graph here runs.

    BackendError where the package or the provider is missing; what the runtime itself raises is in native_failures().
    """
    ort = _import()
    # Its own fallback retries on the same CPU provider and prints to stdout.
    session = ort.InferenceSession(data, _options(ort, threads), providers=[_PROVIDER], enable_fallback=0)
    if session.get_providers() != [_PROVIDER]:
        raise BackendError(
            f"onnxruntime: found the providers {session.get_providers()}, expected [{_PROVIDER!r}]; reinstall onnxruntime"
        )
    return session


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"backend 'onnxruntime': found that it cannot be imported ({error}), expected the package; "
            f"install it with: pip install onnxruntime"
        ) from error
    return onnxruntime


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # errors arrive as exceptions; stderr need not repeat them
    # Within a run the workers spin from one layer to the next; between runs they must not: the update, another
    # graph's pool or another clone wants the processor, and under a quota spinning is paid for.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def native_failures() -> tuple[type[Exception], ...]:
    """Every exception type that the runtime's native half raises; they share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    names = (
        "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
        "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail",
    )  # fmt: skip
    found = [getattr(native, name) for name in names if hasattr(native, name)]
    return (*found, RuntimeError, ValueError, MemoryError)


class OrtGraph(Graph):
    """A graph in an ONNX Runtime session; clones share the session and its threads."""

    backend = NAME

    def __init__(self, role: str, spec: GraphSpec, threads: int, session: Any) -> None:
        super().__init__(role, spec, "f32", threads)
        self._failures = native_failures()
        self._session = session
        self._binding = session.io_binding()

    def _bind(self, outputs: Arrays) -> None:
        self._binding.clear_binding_outputs()
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _run(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        for name, array in arrays.items():
            self._binding.bind_cpu_input(name, array)
        self._session.run_with_iobinding(self._binding)
        self._binding.clear_binding_inputs()  # the caller's arrays are not kept alive

    def _release(self) -> None:
        self._session = self._binding = None

    def _twin(self) -> OrtGraph:
        return OrtGraph(self.role, self.spec, self.threads, self._session)
