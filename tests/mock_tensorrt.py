"""What stands in for TensorRT in tests: plans that hold an ONNX graph, run by ONNX Runtime on the mock's memory."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import struct
import types
import weakref
from enum import IntEnum
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from engine.bundle.graphs import SAMPLER
from engine.bundle.writer import write_bundle
from engine.kernels import cuda_module
from tests import toy, toy_family
from tests.mock_cuda import MisuseError, MockCuda

VERSION = "1.7.1.116"
SCRATCH = 1024
KINDS = {1: "FLOAT", 7: "INT64", 10: "HALF", 2: "UINT8"}  # onnx TensorProto -> trt.DataType
DTYPES = {1: np.float32, 7: np.int64, 10: np.float16, 2: np.uint8}


def plan_of(model: bytes, profile: dict[str, tuple[int, int, int]]) -> bytes:
    """A plan: the header of TensorRT for RTX, then the profile, then the graph."""
    head = json.dumps(profile).encode()
    body = struct.pack("<I", len(head)) + head + model
    return b"vtrt".ljust(16, b"\0") + struct.pack("<QII", 32 + len(body), 0x01070101, 1) + body


class Mock:
    """A machine with a GPU, its driver and TensorRT; `module` is the library under `name`."""

    def __init__(self, name: str = "tensorrt_rtx", version: str = VERSION, **machine: Any) -> None:
        self.cuda = MockCuda(**machine)
        self.objects: weakref.WeakSet[Any] = weakref.WeakSet()
        self.capturable = True
        self.refuses_capture_late = False
        self.module = _module(self, name, version)

    def install(self, monkeypatch: Any) -> Mock:
        """Put driver and library into the places from which the engine imports them."""
        import sys

        from engine.backends.tensorrt import library as tensorrt_library
        from engine.device import context as device

        device.presence.cache_clear()
        tensorrt_library._logger_class.cache_clear()
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", self.cuda)
        monkeypatch.setitem(sys.modules, self.module.__name__, self.module)
        code = cuda_module.CudaCode("fatbin", b"mock", "a mock", "nowhere")
        monkeypatch.setattr(cuda_module, "code", lambda arch: code)  # compiling it is other tests' business
        return self

    def leaks(self) -> dict[str, int]:
        """Objects of driver and library that were not given back."""
        if self.cuda.leaks() or len(self.objects):
            gc.collect()
        found = self.cuda.leaks()
        if len(self.objects):
            found["tensorrt"] = len(self.objects)
        return found

    def call(self, name: str, *arguments: Any) -> bool:
        """Record a call of the library; False where it must fail."""
        return self.cuda.enter(name, arguments) is None


def _module(mock: Mock, name: str, version: str) -> Any:
    module: Any = types.ModuleType(name)
    module.__version__, module.__spec__ = version, ModuleSpec(name, None)
    module.DataType = IntEnum("DataType", ["FLOAT", "HALF", "INT64", "INT32", "UINT8", "BOOL", "INT8"])
    module.ExecutionContextAllocationStrategy = IntEnum("Strategy", ["STATIC", "USER_MANAGED"])
    if name == "tensorrt_rtx":
        module.DynamicShapesKernelSpecializationStrategy = IntEnum("Specialization", ["LAZY", "EAGER", "NONE"])

    class ILogger:
        Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            mock.objects.add(self)

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            assert mock.cuda.pushed(), "deserialising needs a current context"
            if not mock.call("deserialize_cuda_engine", len(data)):
                self.logger.log(ILogger.Severity.INFO, "Loaded engine size: 0 MiB")
                self.logger.log(ILogger.Severity.ERROR, "Error Code 1: Serialization assertion failed")
                return None
            return Engine(mock, module, data)

    module.ILogger, module.Runtime = ILogger, Runtime
    return module


@functools.cache
def _session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Engine:
    def __init__(self, mock: Mock, module: Any, data: bytes) -> None:
        self.mock, self.module = mock, module
        length = struct.unpack_from("<I", data, 32)[0]
        self.profile = json.loads(data[36 : 36 + length])
        raw = data[36 + length :]
        model = onnx.load_from_string(raw)
        self.session = _session(raw)
        self.inputs = [value.name for value in model.graph.input]
        self.tensors = {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in (*model.graph.input, *model.graph.output)
        }
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = SCRATCH
        mock.objects.add(self)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.module.DataType[KINDS[self.tensors[name][0]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(dim, str) else dim for dim in self.tensors[name][1])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        dims = self.tensors[name][1]
        return [tuple(self.profile[dim][i] if isinstance(dim, str) else dim for dim in dims) for i in range(3)]

    def create_runtime_config(self) -> Any:
        return RuntimeConfig(self.module) if self.mock.call("create_runtime_config") else None

    def create_execution_context(self, how: Any) -> Any:
        if not self.mock.call("create_execution_context"):
            return None
        if isinstance(how, RuntimeConfig):
            assert how.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            how = how.strategy
        assert how.name == "USER_MANAGED", "the context would allocate activations of its own"
        return Context(self)


class RuntimeConfig:
    def __init__(self, module: Any) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.LAZY
        self.strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.mock = engine, engine.mock
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None
        self.captured = False
        if engine.module.__name__ == "tensorrt_rtx":
            self.is_stream_capturable = lambda stream: self.mock.capturable
        self.mock.objects.add(self)

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= self.engine.device_memory_size_v2
        self._unchanged()
        self.scratch = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._unchanged()
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self.shapes[name] = tuple(shape)
        return self.mock.call("set_input_shape", name) and fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, f"{name} is not aligned as TensorRT asks"
        self._unchanged()
        self.addresses[name] = address
        return self.mock.call("set_tensor_address", name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        known = {
            dim: size
            for other, shape in self.shapes.items()
            for dim, size in zip(self.engine.tensors[other][1], shape, strict=True)
            if isinstance(dim, str)
        }
        return tuple(known[dim] if isinstance(dim, str) else dim for dim in self.engine.tensors[name][1])

    def execute_async_v3(self, stream: int) -> bool:
        if not self.mock.call("execute_async_v3"):
            return False
        lane = self.mock.cuda.work[stream]
        if lane.captured is not None:
            self.captured = True
            if self.mock.refuses_capture_late:
                lane.broken = True
                return False
        if lane.captured is None:
            return self.mock.cuda.put(stream, self._run) == 0
        context = weakref.ref(self)  # a graph does not keep the context alive that it was captured from

        def replay() -> None:
            found = context()
            if found is None:
                raise MisuseError("a graph is replayed after the context that it was captured from was freed")
            found._run()

        return self.mock.cuda.put(stream, replay) == 0

    def _run(self) -> None:
        cuda, engine = self.mock.cuda, self.engine
        assert self.scratch is not None
        cuda.view(self.scratch[0], (self.scratch[1],), np.uint8)[:] = 0x5A  # activations overwrite all of it
        given = {}
        for name in engine.inputs:
            kind = DTYPES[engine.tensors[name][0]]
            given[name] = cuda.view(self.addresses[name], self.shapes[name], kind).copy()
        outputs = [name for name in engine.tensors if name not in engine.inputs]
        for name, value in zip(outputs, engine.session.run(outputs, given), strict=True):
            cuda.view(self.addresses[name], value.shape, value.dtype)[...] = value

    def _unchanged(self) -> None:
        assert not self.captured, "a context that a graph was captured from must not be changed"


def build_bundle(
    path: Path,
    kind: str = "form1",
    backend: str = "tensorrt_rtx",
    targets: tuple[str, ...] = ("sm86",),
    version: str = VERSION,
    batch: tuple[int, int, int] = (1, 4, 16),
    plans: dict[str, bytes] | None = None,
    nan_at: str | None = None,
) -> Path:
    """A toy bundle with plans; `plans` replaces the bytes of some. nan_at: the graph whose outputs are NaN.

    kind: form1, form2, zcond, uncond (tests/toy.py), or family, the tests' own (tests/toy_family.py).
    """
    models, manifest = toys(kind, ["onnxruntime", backend])
    return write_plans(path, models, manifest, backend, targets, version, batch, plans, nan_at)


def write_plans(
    path: Path,
    models: dict[str, onnx.ModelProto],
    manifest: dict[str, Any],
    backend: str = "tensorrt_rtx",
    targets: tuple[str, ...] = ("sm86",),
    version: str = VERSION,
    batch: tuple[int, int, int] = (1, 4, 16),
    plans: dict[str, bytes] | None = None,
    nan_at: str | None = None,
) -> Path:
    """A bundle of any graphs with plans; see build_bundle."""
    graphs = {name: model.SerializeToString() for name, model in models.items()}
    profile = {"batch": batch, "steps": (1, 10, 1000), "words": (1, 4, 8)}
    made = {name: plan_of(nan_graph(models[name]) if name == nan_at else data, profile) for name, data in graphs.items()}
    made |= plans or {}
    files: dict[str, bytes | Path] = {f"{name}.onnx": data for name, data in graphs.items()}
    manifest["engines"] = []
    for name in models:
        entry = engine_entry(manifest, name, backend, graphs[name], targets, version, profile)
        manifest["engines"].append(entry)
        files[entry["files"]["plan"]["file"]] = made[name]
    write_bundle(path, manifest, files)
    return path


def toys(kind: str, backends: list[str]) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """Graphs and manifest of a toy."""
    if kind == "family":
        models = toy_family.graphs()
        return models, toy_family.manifest(models, backends)
    options: dict[str, Any] = {
        "form1": {}, "form2": {"formulation": 2}, "zcond": {"z_conditioned": True}, "uncond": {"formulation": None},
    }[kind]  # fmt: skip
    formulation, z_conditioned = options.get("formulation", 1), options.get("z_conditioned", False)
    models = toy.models_of(formulation, 8, 4, z_conditioned)
    return models, toy.manifest_of(models, formulation, 8, 4, z_conditioned, backends)


def with_plans(bundle: Path, path: Path, backend: str = "tensorrt_rtx") -> Path:
    """A copy of any bundle, with a plan for each of its float32 graphs."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    profile = {"batch": (1, 4, 16), "steps": (1, 10, 1000)}
    names = [name for name in manifest["graphs"] if "." not in name and name != SAMPLER]
    graphs = {name: (bundle / manifest["graphs"][name]["file"]).read_bytes() for name in names}
    manifest["graphs"] = {name: manifest["graphs"][name] for name in names}
    manifest["backends"] = ["onnxruntime", backend]
    files: dict[str, bytes | Path] = {manifest["graphs"][name]["file"]: data for name, data in graphs.items()}
    manifest["engines"] = []
    for name in names:
        entry = engine_entry(manifest, name, backend, graphs[name], ("sm86",), VERSION, profile)
        manifest["engines"].append(entry)
        files[entry["files"]["plan"]["file"]] = plan_of(graphs[name], profile)
    write_bundle(path, manifest, files)
    return path


def engine_entry(
    manifest: dict[str, Any],
    name: str,
    backend: str,
    graph: bytes,
    targets: tuple[str, ...],
    version: str,
    profile: dict[str, Any],
) -> dict[str, Any]:
    """The manifest's entry of a plan, in the precision that its graph computes in."""
    precision = manifest["graphs"][name]["compute"].get("fp16", "fp16")
    return {
        "backend": backend,
        "precision": precision,
        "graph": name,
        "files": {"plan": {"file": f"{name}.{backend}.{precision}.plan"}},
        "source_sha256": hashlib.sha256(graph).hexdigest(),
        "made_with": {backend: version},
        "targets": list(targets),
        "options": {"profile": {name: list(sizes) for name, sizes in profile.items()}},
        "record": {},
    }


def nan_graph(model: onnx.ModelProto) -> bytes:
    """The same graph with sqrt(-1 - output^2) as its output: NaN everywhere."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, name = changed.graph, changed.graph.output[0].name
    for node in graph.node:
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = "finite"
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(-1), "minus_one"))
    graph.node.extend([
        onnx.helper.make_node("Mul", ["finite", "finite"], ["square"]),
        onnx.helper.make_node("Sub", ["minus_one", "square"], ["negative"]),
        onnx.helper.make_node("Sqrt", ["negative"], [name]),
    ])  # fmt: skip
    return bytes(changed.SerializeToString())
