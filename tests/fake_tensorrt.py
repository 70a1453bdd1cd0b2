"""A stand-in where TensorRT proper is not installed. A module with the names of 10.x or 11.x that notes every call.

Only what the builder uses, with the differences that matter to it: 10.x still has the flags of weak typing, and only the
later ones know the hardware level `SAME_COMPUTE_CAPABILITY`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

PLAN = b"a plan of the fake library"
CACHE = b"timings"
LAYERS = "Layers:\nName: conv + silu, LayerType: kgen, Inputs: []\nName: head, LayerType: gemm, Inputs: []"
LAYERS_10 = "Engine Layer Information:\nLayer(kgen): conv + silu, Tactic: 0x1\nLayer(gemm): head, Tactic: 0x2"


@dataclass
class Behaviour:
    """How the library shall behave, and what it was asked."""

    version: str = "11.4.1.9"
    plan: bytes | None = PLAN
    starts: bool = True
    parses: bool = True
    accepts_profile: bool = True
    accepts_cache: bool = True
    layers: str = LAYERS
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def major(self) -> int:
        """10 or 11."""
        return int(self.version.split(".")[0])

    def note(self, *call: Any) -> None:
        """Remember a call."""
        self.calls.append(call)

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of this name, in order."""
        return [call[1:] for call in self.calls if call[0] == name]


class ParserError:
    """One reason of the parser."""

    def code(self) -> Any:
        return SimpleNamespace(name="UNSUPPORTED_NODE")

    def desc(self) -> str:
        return "false"

    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "odd"

    def node_operator(self) -> str:
        return "Unique"


class Recorded:
    """An object of the library: assignments and calls are noted under its own methods' names."""

    def __init__(self, behaviour: Behaviour) -> None:
        object.__setattr__(self, "does", behaviour)

    def __setattr__(self, name: str, value: Any) -> None:
        self.does.note(name, value)
        object.__setattr__(self, name, value)


class Profile(Recorded):
    def set_shape(self, name: str, low: Sequence[int], usual: Sequence[int], high: Sequence[int]) -> None:
        self.does.note("set_shape", name, low, usual, high)


class Cache(Recorded):
    def serialize(self) -> bytes:
        return CACHE


class Config(Recorded):
    progress_monitor: Any = None

    def clear_flag(self, flag: Any) -> None:
        self.does.note("clear_flag", flag.name)

    def set_flag(self, flag: Any) -> None:
        self.does.note("set_flag", flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.does.note("set_memory_pool_limit", pool.name, size)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.does.note("add_optimization_profile")
        return 0 if self.does.accepts_profile else -1

    def create_timing_cache(self, data: bytes) -> Cache:
        self.does.note("create_timing_cache", data)
        return Cache(self.does)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.does.note("set_timing_cache", ignore_mismatch)
        return bool(self.does.accepts_cache)

    def get_timing_cache(self) -> Cache:
        return Cache(self.does)


def fake_tensorrt(behaviour: Behaviour) -> ModuleType:
    """The module; put it into sys.modules under the name `tensorrt`."""
    module: Any = ModuleType("tensorrt")
    module.__version__ = behaviour.version

    class Bindings:
        """Bases of what the caller derives; the real ones insist on their constructor."""

        def __init__(self) -> None:
            pass

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if not behaviour.starts:
                logger.log(1, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            behaviour.note("create_network", flags)
            return SimpleNamespace()

        def create_builder_config(self) -> Config:
            self.config = Config(behaviour)
            return self.config

        def create_optimization_profile(self) -> Profile:
            return Profile(behaviour)

        def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Timing", "Building engine", 1)
            for phase, step in (("Timing", 0), ("Building engine", 0), ("Building engine", 1)):
                if not monitor.step_complete(phase, step):
                    behaviour.note("cancelled")
                    self.logger.log(1, "Build canceled by user")
                    return None
                monitor.phase_finish(phase)
            self.logger.log(3, "Total Activation Memory: 4096 bytes")
            self.logger.log(3, "Total Weights Memory: 512 bytes")
            self.logger.log(4, behaviour.layers)
            if behaviour.plan is None:
                self.logger.log(2, "a warning")
                self.logger.log(1, "Error Code 10: no implementation for node conv")
            return behaviour.plan

    class OnnxParser:
        num_errors = 0 if behaviour.parses else 1

        def __init__(self, network: Any, logger: Any) -> None:
            behaviour.note("OnnxParser")

        def parse(self, model: bytes) -> bool:
            behaviour.note("parse", model)
            return behaviour.parses

        def supports_model_v2(self, model: bytes) -> bool:
            return behaviour.parses

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    flags = {"TF32": 7, **({"FP16": 0, "INT8": 1} if behaviour.major < 11 else {})}
    levels = {"NONE": 0, "AMPERE_PLUS": 1, **({"SAME_COMPUTE_CAPABILITY": 2} if behaviour.major >= 11 else {})}
    module.ILogger, module.IProgressMonitor = Bindings, type("Monitor", (Bindings,), {})
    module.Builder, module.OnnxParser = Builder, OnnxParser
    module.BuilderFlag = IntEnum("BuilderFlag", flags)
    module.HardwareCompatibilityLevel = IntEnum("HardwareCompatibilityLevel", levels)
    created = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    module.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", created)
    module.ProfilingVerbosity = IntEnum("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2})
    module.MemoryPoolType = IntEnum("MemoryPoolType", {"WORKSPACE": 0})
    return module
