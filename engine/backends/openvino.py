"""Backend `openvino`: graphs on the CPU, in float32, or in bf16 where the processor has it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.base import Backend, check_tensors, package_available, read_onnx
from engine.backends.graph import Arrays, Graph
from engine.backends.host import HostChain
from engine.backends.telemetry import silenced
from engine.bundle.graphs import GraphSpec
from engine.bundle.onnx_file import Onnx, as_inputs
from engine.bundle.reader import Bundle
from engine.bundle.tensors import TensorSpec
from engine.errors import BackendError
from engine.forks import OneProcess
from engine.processor import BF16_FEATURES, Processor, this_processor

NAME = "openvino"
PRECISIONS = ("f32", "bf16")
# Its exceptions arrive as RuntimeError; the bindings add the other types.
NATIVE_FAILURES = (RuntimeError, TypeError, ValueError, MemoryError)
# Its thread pool is the process's: in a child of fork() it has no workers, and a model compiled anew may wait for ever.
ONE_PROCESS = OneProcess("OpenVINO", "native or onnxruntime")
_DTYPES = {"f32": "float32", "i64": "int64"}


class OpenVino(Backend):
    """OpenVINO's CPU plugin."""

    NAME = NAME
    PRECISIONS = PRECISIONS
    ONE_PROCESS = ONE_PROCESS

    @classmethod
    def available(cls) -> tuple[bool, str]:
        """(whether the package is installed, its version or how to mend that)."""
        return package_available(cls.NAME)

    @classmethod
    def check_processor(cls, precision: str, processor: Processor) -> None:
        """BackendError when the processor cannot compute in this precision."""
        if precision == "bf16" and not processor.bf16:
            raise BackendError(
                f"openvino: found precision 'bf16' on a processor without {' or '.join(BF16_FEATURES)} "
                f"({processor}), expected 'f32', which every processor has; choose precision='f32'"
            )

    @classmethod
    def default_precision(cls, bundle: Bundle, processor: Processor) -> str:
        """bf16 where the processor has tiles for it, else f32."""
        return "bf16" if processor.amx_bf16 else "f32"

    def load(self, name: str) -> OpenVinoGraph:
        """Load a graph; BackendError when the runtime is missing, refuses it, or has no such precision here."""
        precision = self.computes_in(name)
        self.check_processor(precision, this_processor())
        return load_graph(self.bundle, name, precision, self.threads)

    def chain(self) -> HostChain:
        """The chain on the host."""
        return HostChain(self)


def load_graph(bundle: Bundle, name: str, precision: str, threads: int) -> OpenVinoGraph:
    """A graph of a verified bundle in exactly this precision; BackendError otherwise."""
    model = read_onnx(bundle, name)
    try:
        compiled = compile_model(model, precision, threads, bundle.spec(name).inputs)
        check_tensors(bundle, name, {p.any_name: _describe(p) for p in (*compiled.inputs, *compiled.outputs)})
        request = compiled.create_infer_request()
    except NATIVE_FAILURES as error:
        raise BackendError(
            f"openvino, graph {name!r} of {bundle.path}: found {type(error).__name__}: {error}; expected a graph that "
            f"it can compile in {precision}; upgrade openvino, or rebuild the bundle"
        ) from error
    obtained = _obtained(compiled)
    if obtained != precision:
        raise BackendError(
            f"openvino, graph {name!r}: found that it runs in {obtained!r}, expected {precision!r} as asked for; "
            f"choose precision={obtained!r} or backend='onnxruntime'"
        )
    return OpenVinoGraph(name, bundle.spec(name), obtained, threads, compiled, request)


def compile_model(model: Onnx | bytes, precision: str, threads: int, inputs: Sequence[TensorSpec] = ()) -> Any:
    """A compiled model over an ONNX model, as every graph here runs; no file is read.

    inputs: as it is to take them, where its file leaves more dimensions free: for a size that it knows it is faster.
    BackendError where the package is missing, or was in use when this process was forked; what the runtime itself raises
    is in NATIVE_FAILURES.
    """
    core = _core()
    ONE_PROCESS.enter()
    return core.compile_model(_fixed(_network(core, model), inputs), "CPU", _config(core, precision, threads))


def _fixed(network: Any, inputs: Sequence[TensorSpec]) -> Any:
    """The network with these inputs, their named dimensions free; as it is where it leaves no other free."""
    shapes = {tensor.name: [-1 if isinstance(d, str) else d for d in tensor.shape] for tensor in inputs}
    there = {port.any_name: port.partial_shape for port in network.inputs}
    loose = {name: shape for name, shape in shapes.items() if name in there and _is_loose(there[name], shape)}
    if loose:
        network.reshape(loose)
    return network


def _is_loose(found: Any, shape: list[int]) -> bool:
    """Whether a network leaves a dimension free that is settled."""
    return len(found) == len(shape) and any(dim.is_dynamic and size >= 0 for dim, size in zip(found, shape, strict=True))


def _network(core: Any, model: Onnx | bytes) -> Any:
    """The model as OpenVINO reads it. Weights outside come in as inputs and become constants over the same memory."""
    if isinstance(model, bytes) or not model.weights:
        return core.read_model(model if isinstance(model, bytes) else model.data)
    from openvino import op, utils

    network = core.read_model(as_inputs(model.data))
    for parameter in network.get_parameters():
        array = model.weights.get(parameter.get_output_tensor(0).any_name)
        if array is not None:
            utils.replace_node(parameter, op.Constant(array, shared_memory=True))
            network.remove_parameter(parameter)
    network.validate_nodes_and_infer_types()
    return network


@functools.cache
def _core() -> Any:
    """The process's one OpenVINO core."""
    try:
        with silenced():
            import openvino
    except ImportError as error:
        raise BackendError(
            f"backend 'openvino': found that it cannot be imported ({error}), expected the package; "
            f"install it with: pip install openvino"
        ) from error
    return openvino.Core()


def _config(core: Any, precision: str, threads: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,  # left out, OpenVINO takes bf16 wherever the processor has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # pinned to host processors, two containers or clones fight over the same ones
    }
    if "DYNAMIC_QUANTIZATION_GROUP_SIZE" in core.get_property("CPU", "SUPPORTED_PROPERTIES"):
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # activations are not quantized unless asked for
    return config


def _obtained(compiled: Any) -> str:
    """The precision that a compiled model computes in."""
    value = compiled.get_property("INFERENCE_PRECISION_HINT")
    return str(value.get_type_name() if hasattr(value, "get_type_name") else value)


def _describe(port: Any) -> tuple[str, list[int | str | None]]:
    dtype = port.element_type.get_type_name()
    shape = [dim.get_length() if dim.is_static else None for dim in port.partial_shape]
    return _DTYPES.get(dtype, dtype), shape


class OpenVinoGraph(Graph):
    """A compiled model and one infer request; clones share the compiled model and take turns on its threads."""

    backend = NAME
    _failures = NATIVE_FAILURES
    _one_process = ONE_PROCESS

    def __init__(self, name: str, spec: GraphSpec, precision: str, threads: int, compiled: Any, request: Any) -> None:
        super().__init__(name, spec, precision, threads)
        self._compiled = compiled
        self._request = request

    def _bind(self, outputs: Arrays) -> None:
        self._set(outputs)

    def _run(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self._set(arrays)
        try:
            self._request.start_async()
        finally:
            self._request.wait()  # also where a signal's handler has raised: the request must not run on

    def _set(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        from openvino import Tensor

        for name, array in arrays.items():
            self._request.set_tensor(name, Tensor(array, shared_memory=True))

    def held(self) -> tuple[object, ...]:
        return self._compiled, self._request

    def _release(self) -> None:
        self._request = self._compiled = None

    def _twin(self) -> OpenVinoGraph:
        request = self._compiled.create_infer_request()
        return OpenVinoGraph(self.name, self.spec, self.precision, self.threads, self._compiled, request)
