"""Plans: everything that can be checked is, before the library reads a byte and after it has.

Before: the hash (by the bundle), the library's version, the target against the device, the header. After: names, types
and shapes of all tensors against the manifest. An error says what was found, what was expected, and what rebuilds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.backends.base import check_tensors
from engine.backends.tensorrt.library import load_library, new_logger, said
from engine.bundle.engines import EngineSpec
from engine.bundle.graphs import GraphSpec
from engine.bundle.reader import Bundle
from engine.bundle.tensors import BATCH
from engine.commands import command
from engine.device.context import Device
from engine.errors import BackendError
from engine.forks import leave_to_parent

PRECISION = "fp16"  # that plans are asked for in; which graphs compute in another, the manifest says
MAGIC = b"vtrt"  # what a plan of TensorRT for RTX begins with
SIZE_FIELD = slice(16, 24)  # its length, little-endian
HEADER = 32


def rebuild(bundle: Bundle, backend: str, *options: str) -> str:
    """The command that builds the plans anew."""
    wanted = ("--backends", backend, "--precision", PRECISION, *options)
    return f"rebuild with: {command('build', 'CKPT', '--out', bundle.path, *wanted)}"


def covers(targets: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether one of `targets` is this compute capability: "sm86" is exactly that, "sm80+" that and every later one."""
    here = 10 * capability[0] + capability[1]
    for target in targets:
        number, later = target.removeprefix("sm").removesuffix("+"), target.endswith("+")
        if number.isdigit() and (here == int(number) or (later and here > int(number))):
            return True
    return False


def check_before(bundle: Bundle, entry: EngineSpec, device: Device, version: str) -> None:
    """BackendError unless the library's version and the device are those that the plan was built for."""
    where = f"{bundle.path}, {entry.name}"
    made_with = entry.made_with.get(entry.backend, "an unrecorded version")
    if made_with != version:
        raise BackendError(
            f"{where}: found a plan of {entry.backend} {made_with}, expected one of {version}, the version installed "
            f"(plans run on the version that built them only); {rebuild(bundle, entry.backend)}, or install that version"
        )
    if not covers(entry.targets, device.capability):
        raise BackendError(
            f"{where}: found a plan for {', '.join(entry.targets) or 'no target'}, expected one for {device.sm}, which "
            f"{device.name} (device {device.ordinal}) is; {rebuild(bundle, entry.backend, '--targets', device.sm)}"
        )


def check_header(data: bytes, where: str, bundle: Bundle, backend: str) -> None:
    """BackendError for bytes that are no whole plan: the library would read past their end."""
    cure = rebuild(bundle, backend)
    if backend == "tensorrt_rtx" and data[: len(MAGIC)] != MAGIC:
        found = f"{len(data)} bytes that begin with {data[:4]!r}"
        raise BackendError(f"{where}: found {found}, expected a plan, which begins with {MAGIC!r}; {cure}")
    if len(data) < HEADER:
        raise BackendError(f"{where}: found {len(data)} bytes, expected a plan, which is longer; {cure}")
    told = int.from_bytes(data[SIZE_FIELD], "little")
    if backend == "tensorrt_rtx" and told > len(data):
        raise BackendError(
            f"{where}: found {len(data)} bytes, expected {told} as the plan's header says: it is cut short; {cure}"
        )


@dataclass(frozen=True)
class Range:
    """What a profile allows of one input: smallest and largest shape."""

    smallest: tuple[int, ...]
    largest: tuple[int, ...]


class Plan:
    """A deserialised engine whose tensors are what the manifest says; clones share it, each with contexts of its own.

    Attributes: name (of its graph), spec, precision, device, ranges (of each input), scratch (bytes of activations).
    """

    def __init__(self, bundle: Bundle, backend: str, name: str, precision: str, device: Device) -> None:
        self.library = load_library(backend)
        self.bundle, self.backend, self.name, self.precision, self.device = bundle, backend, name, precision, device
        self.entry = bundle.engine(backend, precision, name)
        self.where = f"{bundle.path}, {self.entry.name}"
        check_before(bundle, self.entry, device, str(self.library.__version__))
        data = bundle.read_engine(self.entry, "plan")
        check_header(data, self.where, bundle, backend)
        self.logger = new_logger(self.library)
        self._runtime, self.engine = self._deserialise(data)
        self.spec: GraphSpec = bundle.spec(name)  # of a half graph too: it takes and gives what the one in float32 does
        check_tensors(bundle, name, self._tensors())
        inputs = [tensor.name for tensor in self.spec.inputs]
        self.ranges = {name: self._range(name) for name in inputs}
        self.scratch = int(self.engine.device_memory_size_v2)
        leave_to_parent(self)

    def held(self) -> tuple[object, ...]:
        """What the library must not destroy in a child of fork()."""
        return self._runtime, self.engine

    def batches(self, name: str, axis: int = 0) -> tuple[int, int]:
        """The smallest and largest size of an input's axis."""
        allowed = self.ranges[name]
        return allowed.smallest[axis], allowed.largest[axis]

    def room(self, name: str, axis: int, entries: int) -> int:
        """How many samples of so many entries each an input's axis takes; BackendError where it is not one."""
        largest = self.ranges[name].largest
        if largest[axis] < entries:
            self.check_shape(name, (*largest[:axis], entries, *largest[axis + 1 :]))
        return largest[axis] // entries

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """BackendError with the range when a shape is outside the profile that the plan was built with."""
        allowed = self.ranges[name]
        for axis, size in enumerate(shape):
            low, high = allowed.smallest[axis], allowed.largest[axis]
            if not low <= size <= high:
                # Another free dimension, such as steps, is built for every size that the bundle allows.
                batch = ("--trt-batch", str(min(low, size)), str(size), str(max(high, size)))
                options = batch if self._dimension(name, axis) == BATCH else ()
                raise BackendError(
                    f"{self.where}, input {name}: found {list(shape)}, expected {size} to be in {low}..{high}, the range "
                    f"that the plan was built for; choose a size in it, or {rebuild(self.bundle, self.backend, *options)}"
                )

    def _dimension(self, name: str, axis: int) -> int | str:
        return next(tensor.shape[axis] for tensor in self.spec.inputs if tensor.name == name)

    def failure(self, what: str) -> BackendError:
        """The error of a call that returned None or False, with what the library said."""
        return BackendError(
            f"{self.where}: found that {self.backend} refuses {what} (it said: {said(self.logger)}), expected it to work; "
            f"check the GPU's memory, or {rebuild(self.bundle, self.backend)}"
        )

    def _deserialise(self, data: bytes) -> tuple[Any, Any]:
        runtime = self.library.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError(
                f"{self.where}: found a plan that {self.backend} {self.library.__version__} does not load (it said: "
                f"{said(self.logger)}), expected one that it can; check the driver with nvidia-smi, or "
                f"{rebuild(self.bundle, self.backend, '--targets', self.device.sm)}"
            )
        return runtime, engine

    def _tensors(self) -> dict[str, tuple[str, list[int | str | None]]]:
        """Names, types and shapes as the engine has them."""
        types = self.library.DataType
        names = {
            types.FLOAT: "float32", types.HALF: "float16", types.INT64: "int64", types.INT32: "int32",
            types.UINT8: "uint8", types.BOOL: "bool", types.INT8: "int8",
        }  # fmt: skip
        found: dict[str, tuple[str, list[int | str | None]]] = {}
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            kind = self.engine.get_tensor_dtype(name)
            shape: list[int | str | None] = [None if d < 0 else int(d) for d in self.engine.get_tensor_shape(name)]
            found[name] = names.get(kind, str(kind)), shape
        return found

    def _range(self, name: str) -> Range:
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        return Range(tuple(map(int, smallest)), tuple(map(int, largest)))


class Execution:
    """One execution context with shapes and addresses set once: enqueue it as often as wanted, or capture it.

    A context that a CUDA graph was captured from must not be changed any more, so every shape has its own.
    """

    def __init__(self, plan: Plan, scratch: int, tensors: Mapping[str, tuple[int, tuple[int, ...]]]) -> None:
        self.plan = plan
        for tensor in plan.spec.inputs:
            plan.check_shape(tensor.name, tensors[tensor.name][1])
        self._context = _new_context(plan)
        leave_to_parent(self)
        if plan.scratch:
            self._context.set_device_memory(scratch, plan.scratch)
        inputs = {tensor.name for tensor in plan.spec.inputs}
        for name, (address, shape) in tensors.items():
            if name in inputs and not self._context.set_input_shape(name, shape):
                raise plan.failure(f"the shape {list(shape)} of {name}")
            if not self._context.set_tensor_address(name, address):
                raise plan.failure(f"the address of {name}")
        self._check_outputs(tensors)

    def enqueue(self, stream: int) -> None:
        """Put one evaluation into the stream; BackendError when the library refuses."""
        if not self._context.execute_async_v3(stream):
            raise self.plan.failure("to run")

    def capturable(self, stream: int) -> bool:
        """Whether the library allows the stream to be captured; one that has no say on it does."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream))

    def held(self) -> tuple[object, ...]:
        """What the library must not destroy in a child of fork()."""
        return (self._context,)

    def close(self) -> None:
        self._context = None

    def _check_outputs(self, tensors: Mapping[str, tuple[int, tuple[int, ...]]]) -> None:
        """The library writes as much as its shapes say: more than there is room for must not be."""
        for tensor in self.plan.spec.outputs:
            found, expected = tuple(self._context.get_tensor_shape(tensor.name)), tensors[tensor.name][1]
            if math.prod(found) != math.prod(expected):
                raise BackendError(
                    f"{self.plan.where}: found the output {tensor.name} as {list(found)}, expected {list(expected)}; "
                    f"{rebuild(self.plan.bundle, self.plan.backend)}"
                )


def _new_context(plan: Plan) -> Any:
    """A context that brings no activation memory of its own."""
    managed = plan.library.ExecutionContextAllocationStrategy.USER_MANAGED
    context = None
    if hasattr(plan.library, "DynamicShapesKernelSpecializationStrategy"):
        config = plan.engine.create_runtime_config()
        if config is None:
            raise plan.failure("a runtime configuration")
        config.set_execution_context_allocation_strategy(managed)
        # Compiled later in the background, as is the default, kernels for this shape would never reach a captured graph.
        config.dynamic_shapes_kernel_specialization_strategy = plan.library.DynamicShapesKernelSpecializationStrategy.EAGER
        context = plan.engine.create_execution_context(config)
    else:
        context = plan.engine.create_execution_context(managed)
    if context is None:
        raise plan.failure("an execution context")
    return context
