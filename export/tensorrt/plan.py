"""TensorRT plans of ONNX graphs: parse, set what was asked for, build, and keep what the builder said."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.bundle.tensors import TensorSpec
from engine.commands import command
from engine.errors import BackendError, ExportError
from export.context import Watch
from export.tensorrt.library import Library
from export.tensorrt.log import BuildNotes, make_logger, read_header
from export.tensorrt.monitor import interrupt_held_back, make_monitor
from export.tensorrt.options import PlanOptions, Range

SAMPLE_EVERY = 64  # messages; a few thousand of them arrive in a build
PARSER_ERRORS = 3  # shown


@dataclass(frozen=True)
class Plan:
    """A serialised engine, and what is known about how it was made."""

    data: bytes
    record: dict[str, Any]


@dataclass
class _Memory:
    """The most resident memory that this process was seen with while building; 0 where the system does not say."""

    peak: int = field(default_factory=lambda: resident_bytes())
    heard: int = 0

    def sample(self) -> None:
        """Look now."""
        self.peak = max(self.peak, resident_bytes())

    def message(self) -> None:
        """Look at every SAMPLE_EVERY-th call."""
        self.heard += 1
        if self.heard % SAMPLE_EVERY == 0:
            self.sample()


def resident_bytes() -> int:
    """The resident memory of this process; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def build_plan(
    library: Library, name: str, model: bytes, inputs: Sequence[TensorSpec], options: PlanOptions, watch: Watch | None = None
) -> Plan:
    """Build one plan from the bytes of an ONNX file whose `inputs` have named free dimensions.

    ExportError with the builder's own last messages when it does not parse or build.
    """
    trt = library.module
    notes, memory, started = BuildNotes(), _Memory(), time.perf_counter()

    def hear(severity: int, message: str) -> None:
        notes.hear(severity, message)
        memory.message()

    logger = make_logger(trt, hear)
    builder = open_builder(library, logger, notes)
    network, _parser = parse(library, builder, logger, name, model)  # the parser owns weights until the plan is built
    config = _configure(library, builder, options)
    _add_profile(library, builder, config, name, inputs, options.sizes(), notes)
    cache = _load_cache(library, config, options.timing_cache)
    with interrupt_held_back() as interrupted:
        monitor = make_monitor(trt, _reporter(watch or Watch(), name, memory), interrupted)
        config.progress_monitor = monitor
        data = builder.build_serialized_network(network, config)
    monitor.raise_again()
    if data is None:
        raise ExportError(
            f"graph {name}: found that {library} builds no plan ({notes.reasons()}), expected one for "
            f"{_purpose(options)}; {_cure(options)}"
        )
    memory.sample()
    plan = bytes(data)
    if cache is not None and options.timing_cache is not None:
        _store_cache(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    record = {"seconds": round(time.perf_counter() - started, 2), "peak_memory_bytes": memory.peak or None}
    return Plan(plan, {**record, **notes.as_record(), "header": read_header(plan)})


def open_builder(library: Library, logger: Any, notes: BuildNotes) -> Any:
    """A builder; BackendError where the library finds no device that it needs."""
    try:
        return library.module.Builder(logger)
    except (TypeError, RuntimeError) as error:  # what the bindings raise for a null pointer
        raise BackendError(
            f"backend {library.backend}: found that {library} cannot start here ({error}; {notes.reasons()}), expected a "
            "driver and a GPU that it supports; --backends tensorrt_rtx builds plans without a GPU"
        ) from error


def typed_network(library: Library, builder: Any) -> Any:
    """An empty network that keeps the types of the graph parsed into it."""
    # TensorRT 10 types networks weakly unless asked; from 11 on, and in RTX, the flag is kept and means nothing.
    flag = getattr(library.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def parse(library: Library, builder: Any, logger: Any, name: str, model: bytes) -> tuple[Any, Any]:
    """The network of an ONNX file and its parser, which must live as long; ExportError says which node it refuses."""
    trt = library.module
    network = typed_network(library, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [describe_error(parser.get_error(i)) for i in range(min(parser.num_errors, PARSER_ERRORS))]
        raise ExportError(
            f"graph {name}: found that {library} cannot parse it ({'; '.join(errors) or 'no reason given'}), expected an "
            "ONNX graph of operators that it has; every such node is listed by: {command('build', 'CKPT', '--check')}"
        )
    return network, parser


def describe_error(error: Any) -> str:
    """A parser's error in a few words."""
    where = " ".join(part for part in (error.node_operator(), repr(error.node_name())) if part not in ("", "''"))
    return f"{error.code().name} in {where or 'the model'}: {error.desc()}"


def _configure(library: Library, builder: Any, options: PlanOptions) -> Any:
    trt, config = library.module, builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # makes the builder list its kernels
    config.builder_optimization_level = options.level
    # What a graph keeps in float32 it keeps for a reason; TensorFloat-32 has the mantissa of half precision.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if library.rtx:
        config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            capability = library.member(f"ComputeCapability.{target.upper()}", f"--targets {target}")
            config.set_compute_capability(capability, index)
    elif options.hardware != "none":
        level = f"HardwareCompatibilityLevel.{options.hardware.upper()}"
        config.hardware_compatibility_level = library.member(level, f"--trt-hardware {options.hardware}")
    return config


def _add_profile(
    library: Library,
    builder: Any,
    config: Any,
    name: str,
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, Range],
    notes: BuildNotes,
) -> None:
    """Without the range of every free dimension the builder returns nothing at all."""
    free = [tensor for tensor in inputs if any(isinstance(d, str) for d in tensor.shape)]
    if not free:
        return
    profile = builder.create_optimization_profile()
    for tensor in free:
        ranges = [sizes[d] if isinstance(d, str) else Range(d, d, d) for d in tensor.shape]
        profile.set_shape(tensor.name, *(tuple(shape) for shape in zip(*ranges, strict=True)))
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(
            f"graph {name}: found that {library} refuses the ranges {({k: tuple(v) for k, v in sizes.items()})} "
            f"({notes.reasons()}), expected it to accept them; choose another --trt-batch"
        )


def _load_cache(library: Library, config: Any, path: Path | None) -> Any | None:
    """The timings of earlier builds; ExportError when the file is of another TensorRT or GPU."""
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""  # the first build writes it
    except OSError as error:
        raise ExportError(
            f"--trt-timing-cache {path}: found a file that cannot be read ({error.strerror}), expected one that an earlier "
            "build wrote, or none"
        ) from error
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise ExportError(
            f"--trt-timing-cache {path}: found timings that {library} does not accept on this GPU, expected those of the "
            "same version and GPU; remove the file or name another"
        )
    return cache


def _store_cache(path: Path, data: bytes) -> None:
    """Replace the file in one step, so that two builds at once leave one of their caches whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExportError(
            f"--trt-timing-cache {path}: found that it cannot be written ({error.strerror}), expected a folder with room "
            "and write permission"
        ) from error


def _cure(options: PlanOptions) -> str:
    if "sm75" in options.targets:
        return "sm75 takes no matrix product in float32: add --turing, or leave sm75 out of --targets"
    return f"nodes that it does not have are shown by: {command('build', 'CKPT', '--check')}"


def _purpose(options: PlanOptions) -> str:
    return f"batch {options.batch.low} to {options.batch.high} and {', '.join(options.targets) or 'this GPU'}"


def _reporter(watch: Watch, name: str, memory: _Memory) -> Callable[[str, int, int], None]:
    def report(phase: str, done: int, total: int) -> None:
        memory.sample()
        watch.progress(f"{name}: {phase}", done, total)

    return report
