"""Backend `onnxruntime`: graphs on the CPU, in float32 or half; the same code serves its GPU providers, see Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.base import Backend, check_tensors, package_available, read_onnx
from engine.backends.graph import Arrays, Graph
from engine.backends.host import HostChain
from engine.backends.telemetry import silenced
from engine.bundle.graphs import GraphSpec, graph_key
from engine.bundle.maps import free_sizes
from engine.bundle.onnx_file import Onnx
from engine.bundle.reader import Bundle
from engine.commands import command
from engine.errors import BackendError
from engine.forks import CUDA, OneProcess

NAME = "onnxruntime"
PRECISIONS = ("f32", "fp16")  # half graphs run here too, by casts: no faster, but what a GPU will compute can be seen
_ONNX_TYPES = {"float32": 1, "float16": 10}
_CPU = "CPUExecutionProvider"
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


@dataclass(frozen=True)
class Runtime:
    """One backend name: the execution providers that it stands for, in order, and what to install for them.

    providers: {name: its options}. What the first cannot run goes to the next, and shape arithmetic always to the CPU's;
    that a provider is missing altogether is an error, never a reason to take another.
    """

    name: str
    providers: Mapping[str, Mapping[str, str]]
    precisions: tuple[str, ...]
    install: str

    @property
    def one_process(self) -> OneProcess | None:
        """What a child of fork() cannot open again: the CPU's threads are each session's own, a device is the process's."""
        return None if set(self.providers) <= {_CPU} else CUDA


CPU = Runtime(NAME, {_CPU: {}}, PRECISIONS, "pip install onnxruntime")


class OnnxRuntime(Backend):
    """ONNX Runtime on the CPU; subclasses name other providers."""

    NAME = NAME
    PRECISIONS = PRECISIONS
    RUNTIME = CPU

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """(whether the package is installed, its version or how to mend that)."""
        return package_available(cls.NAME)

    def load(self, name: str) -> OrtGraph:
        """Load a graph; BackendError when the runtime is missing, or refuses graph or precision."""
        return load_on(self.RUNTIME, self.bundle, name, self.precision, self.threads)

    def chain(self) -> HostChain:
        """The chain on the host."""
        return HostChain(self)


def load_on(runtime: Runtime, bundle: Bundle, name: str, precision: str, threads: int) -> OrtGraph:
    """Load a graph on these providers; in "fp16" that is the bundle's half graph, where the manifest computes it so."""
    obtained = bundle.spec(name).computes_in(precision)
    key = graph_key(name, obtained)
    if key not in bundle.manifest.graphs:
        build = command("build", "CKPT", "--out", bundle.path, "--precision", precision)
        raise BackendError(
            f"{bundle.path}: found no graph {key!r}, expected one for {runtime.name} in {precision}; "
            f"build the bundle again with: {build}; or choose precision f32"
        )
    model, sizes = read_onnx(bundle, key), free_sizes(bundle.manifest.pipeline)
    try:
        session = open_session(model, threads, runtime, sizes)
        tensors = {
            tensor.name: (_DTYPES.get(tensor.type, tensor.type), [sizes.get(d, d) for d in tensor.shape])
            for tensor in (*session.get_inputs(), *session.get_outputs())
        }
    except native_failures() as error:
        raise BackendError(
            f"{runtime.name} {_import().__version__}, graph {key!r} of {bundle.path}: found {type(error).__name__}: "
            f"{error}; expected a graph that it can load; upgrade onnxruntime, or rebuild the bundle; what it needs comes "
            f"with: {runtime.install}"
        ) from error
    check_tensors(bundle, key, tensors)
    return OrtGraph(name, bundle.spec(key), obtained, threads, session, runtime)


def open_session(
    model: Onnx | bytes, threads: int, runtime: Runtime = CPU, sizes: Mapping[str, int] | None = None
) -> Any:
    """An InferenceSession over an ONNX model, on exactly the providers asked for.

    sizes: of its free dimensions by name, where they are settled: the session plans with them as if they stood in the file.
    BackendError where the package or a provider is missing, DeviceError after a fork() that left CUDA behind; what the
    runtime itself raises is in native_failures().
    """
    ort, asked = _import(), list(runtime.providers)
    # A provider that this build does not have, or whose libraries or device are missing, is passed over with no more than
    # a line in a log: compare before and after.
    built_in = ort.get_available_providers()
    if not set(asked) <= set(built_in):
        raise _other_providers(runtime, ort, f"has the providers {', '.join(built_in)}")
    if runtime.one_process is not None:
        runtime.one_process.enter()
    advice = _preload(runtime, ort)
    # Its own fallback retries on the same CPU provider and prints to stdout.
    providers = [(name, dict(options)) for name, options in runtime.providers.items()]
    model = model if isinstance(model, Onnx) else Onnx(model)
    options = _options(ort, threads)
    if model.weights:
        values = [
            ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_TYPES[array.dtype.name])
            for array in model.weights.values()
        ]
        options.add_external_initializers(list(model.weights), values)
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    session = ort.InferenceSession(model.data, options, providers=providers, enable_fallback=0)
    session.weights = model.weights  # the session computes with this memory and does not keep it alive itself
    taken = session.get_providers()
    if taken != (asked if _CPU in asked else [*asked, _CPU]):
        raise _other_providers(runtime, ort, f"took the providers {', '.join(taken)}{advice}")
    return session


def _preload(runtime: Runtime, ort: Any) -> str:
    """Load CUDA's libraries from where pip has put them; onnxruntime prints what is missing, here it goes into an error."""
    if runtime == CPU or not hasattr(ort, "preload_dlls"):  # from 1.21 on
        return ""
    with redirect_stdout(StringIO()) as said:
        ort.preload_dlls()
    lines = [line for line in said.getvalue().splitlines() if line.startswith("Failed to load")]
    return f" ({lines[0][:200]})" if lines else ""


def _other_providers(runtime: Runtime, ort: Any, found: str) -> BackendError:
    return BackendError(
        f"{runtime.name}: found that onnxruntime {ort.__version__} {found}, expected {', '.join(runtime.providers)}; "
        f"check the device and its driver, and install what they need with: {runtime.install}"
    )


def _import() -> Any:
    try:
        with silenced():
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

    def __init__(
        self, name: str, spec: GraphSpec, precision: str, threads: int, session: Any, runtime: Runtime
    ) -> None:
        super().__init__(name, spec, precision, threads)
        self.backend = runtime.name
        self._runtime, self._one_process = runtime, runtime.one_process
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

    def held(self) -> tuple[object, ...]:
        return self._session, self._binding

    def _release(self) -> None:
        self._session = self._binding = None

    def _twin(self) -> OrtGraph:
        return OrtGraph(self.name, self.spec, self.precision, self.threads, self._session, self._runtime)
