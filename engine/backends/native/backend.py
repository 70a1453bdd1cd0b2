"""How does this project's own engine run a graph on the CPU, in bf16 or int8? A checked program, mapped weights, C++.

The instruction set is the best that processor and operating system allow (AMX, AVX512_BF16, AVX-512 VNNI, AVX2);
DIFFUSEVAE_ISA forces one of them. Results depend on the instruction set, never on batch size or threads.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.backends.base import Arrays, Graph, check_precision
from engine.backends.native.program import PORT_KINDS, ParsedProgram, check_ports, op_kind, op_side, parse_program
from engine.backends.native.weights import Weights, map_weights
from engine.bundle.fields import REBUILD
from engine.bundle.manifest import GraphSpec
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, BackendError, BundleError, EngineError, did_you_mean
from engine.kernels import native_library
from engine.kernels.errors import KernelLoadError
from engine.kernels.native_library import ISAS, MAX_THREADS, NONE, Flat, NativeError, NativeLibrary, Steps
from engine.processor import Processor, this_processor
from engine.threads import resolve_threads

NAME = "native"
PRECISIONS = ("bf16", "int8")
VARIABLE = "DIFFUSEVAE_ISA"
TABLE, DENOISER = "timestep_table", "denoiser"
# What a processor must report for the instruction sets on which native bf16 beats every other CPU backend. On Zen 5,
# CIFAR-10 at batch 1, ms a step: OpenVINO f32 27.8 and bf16 16.2; avx512_bf16 8.4; avx512, which widens to float32, 14.6.
_FAST = {
    "amx": frozenset({"amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512bw", "avx512_bf16"}),
    "avx512_bf16": frozenset({"avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512_vnni"}),
}


def load(bundle: Bundle, role: str, *, precision: str = "bf16", threads: int | None = None) -> NativeGraph:
    """Load a program of a verified bundle; BackendError when this machine cannot run it, BundleError when it is damaged.

    The timestep table is in float32 whatever is asked for, and int8 is the denoiser's alone: the VAE stays in bf16.
    """
    spec = bundle.spec(role)
    stored = stored_precision(role, precision)
    entry = bundle.engine(NAME, stored, role)
    weights = map_weights(bundle.engine_file(entry, "weights"))
    where = str(bundle.path / entry.files["program"].file)
    return open_graph(bundle.read_engine(entry, "program"), weights, spec, role, stored, threads, where)


def open_graph(
    program: bytes, weights: Weights, spec: GraphSpec, role: str, precision: str, threads: int | None, where: str
) -> NativeGraph:
    """A graph over a program's bytes and its weights; `where` names it in messages."""
    count = min(resolve_threads(threads), MAX_THREADS)
    library, isa = _library(), instruction_set()
    parsed = parse_program(program, weights.blobs, role, precision, where)
    check_ports(parsed, spec, where)
    loaded = Loaded(parsed, weights, library)
    with _typed(where):
        handle = library.open(Flat(parsed.ports, parsed.tensors, parsed.ops, weights.data), isa, count)
    return NativeGraph(role, spec, precision, count, loaded, handle)


def stored_precision(role: str, precision: str) -> str:
    """The precision of the program that serves a role when `precision` is asked for."""
    if role == TABLE:
        return "f32"
    check_precision(precision, PRECISIONS, NAME)
    return precision if role == DENOISER else "bf16"


# ---- what this machine has ---------------------------------------------------------------------------


def available() -> tuple[bool, str]:
    """(whether the engine runs here, its instruction set or why it does not)."""
    try:
        isa = instruction_set()
    except BackendError as error:
        return False, f"not available: {error}"
    return True, f"compiled in, instruction set {isa}{f' ({VARIABLE} is set)' if os.environ.get(VARIABLE) else ''}"


def instruction_set() -> str:
    """One of ISAS: what graphs loaded now run on; BackendError where none of them does."""
    library, forced = _library(), os.environ.get(VARIABLE)
    if not forced:
        best = library.isa()
        if not best:
            _, why = library.supports(ISAS[-1])
            raise BackendError(
                f"backend 'native': found a processor on which no instruction set of its kernels runs ({why}), expected "
                f"one of {', '.join(ISAS)}; choose another backend"
            )
        return best
    if forced not in ISAS:
        raise BackendError(
            f"{VARIABLE}: found {forced!r}, expected one of {', '.join(ISAS)}, or the variable unset for the best."
            f"{did_you_mean(forced, ISAS)}"
        )
    there, why = library.supports(forced)
    if not there:
        raise BackendError(
            f"{VARIABLE}: found {forced!r} on a machine that cannot run it ({why}), expected one that it can; unset the "
            f"variable, or choose {library.isa() or 'another backend'}"
        )
    return forced


def ceiling(what: str, threads: int, seconds: float) -> float | None:
    """What this machine could do: operations a second of "bf16_l2", "int8_l2" or "f32_l2" products with operands from L2,
    or bytes a second of "stream"; None where the instruction set has no such unit."""
    try:
        return _library().ceiling(what, instruction_set(), threads, seconds)
    except NativeError as error:
        if error.status == native_library.UNSUPPORTED:
            return None
        raise BackendError(f"native, roofline of {what!r}: found {error}; expected a measurement; choose another") from error


def auto_precision(bundle: Bundle, precision: str, processor: Processor) -> str | None:
    """The precision in which "auto" takes this backend for a bundle, or None where another is better.

    No other backend has int8; it is never chosen for somebody who did not ask for a loss.
    """
    wanted = "bf16" if precision == "auto" else precision
    best = wanted == "int8" or (wanted == "bf16" and _is_fast(processor))
    return wanted if best and bundle.has_engine(NAME, wanted, DENOISER) else None


def default_precision(bundle: Bundle) -> str:
    """The precision for a caller who named this backend but no precision."""
    return next((p for p in PRECISIONS if bundle.has_engine(NAME, p, DENOISER)), PRECISIONS[0])


def _is_fast(processor: Processor) -> bool:
    """Whether one of _FAST runs: on this machine as library and system say, on another as its features do."""
    if processor is this_processor():
        return available()[0] and instruction_set() in _FAST
    return any(needed <= processor.features for needed in _FAST.values())


def _library() -> NativeLibrary:
    try:
        return native_library.native_library()
    except KernelLoadError as error:
        raise BackendError(f"backend 'native': found no library of it: {error}") from error


# ---- a program, loaded -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What all handles over one program share."""

    program: ParsedProgram
    weights: Weights
    library: NativeLibrary


@dataclass(frozen=True)
class StepTimes:
    """How a run of a whole chain went: milliseconds of the network a step, of all updates, and the step that failed."""

    network_ms: list[float]
    update_ms: float
    failed_step: int | None


@dataclass(frozen=True)
class OperationTime:
    """One operation, in the mean of some runs: microseconds as the first thread saw them (barriers included), and its work.

    kind: what it is, "conv 3x3" for instance; side: height of its output in pixels. prepare_us: norm, activation and layout
    of a convolution's operand; product_us: everything else. flop: of the whole batch, as done (Winograd: 16
    products for 4 pixels); weight_bytes: each read once.
    """

    name: str
    kind: str
    side: int
    prepare_us: float
    product_us: float
    flop: float
    weight_bytes: float


class NativeGraph(Graph):
    """A program and one handle over it; clones have a plan and weights in common, memory and threads of their own."""

    backend = NAME
    _failures = ()  # calls of the library raise what is meant for the caller already

    def __init__(self, role: str, spec: GraphSpec, precision: str, threads: int, loaded: Loaded, handle: int) -> None:
        super().__init__(role, spec, precision, threads)
        self._loaded = loaded
        self._adopt(handle)
        self._addresses: dict[str, int] = {}

    @property
    def isa(self) -> str:
        """The instruction set that this graph runs on."""
        return str(self._loaded.library.describe(self._own_handle()).isa.decode())

    @property
    def arena_bytes(self) -> int:
        """Memory of this handle beside the weights, which are shared."""
        return int(self._loaded.library.describe(self._own_handle()).arena_bytes)

    def operation_times(self, runs: int, arrays: Mapping[str, npt.NDArray[np.generic]]) -> list[OperationTime]:
        """Call the graph on these inputs so many times and tell where the time of a call went, in the program's order."""
        library, program = self._loaded.library, self._loaded.program
        with _typed(f"native graph {self.role!r}, the clocks of its operations"):
            library.profile(self._own_handle(), True)
            try:
                for _ in range(runs):
                    self(**arrays)
            finally:
                library.profile(self._own_handle(), False)
        timings = library.timings(self._own_handle(), len(program.ops))
        return [
            OperationTime(
                name, op_kind(op), op_side(program, op), t.prepare_us / runs, t.product_us / runs, t.flop / runs,
                t.weight_bytes / runs,
            )
            for name, op, t in zip(program.op_names, program.ops, timings, strict=True)
        ]  # fmt: skip

    def run_steps(
        self,
        *,
        rows: npt.NDArray[np.float32],
        coefficients: npt.NDArray[np.float32],
        x: npt.NDArray[np.float32],
        cond: npt.NDArray[np.float32] | None,
        samples: int,
        keep_x0: bool,
        seeds: npt.NDArray[np.uint64] | None,
        noise: npt.NDArray[np.float32] | None,
        guidance: float,
    ) -> StepTimes:
        """A whole chain in one call: x [lanes, C, H, W] goes from x_T to x_0 in place (its first `samples` images).

        lanes is samples, or twice as many with guidance: the second half is the unconditional branch. rows [S, 1 or
        lanes, R], coefficients [S, 10] as kernels.update takes them, noise [S, samples or 1, C, H, W] in place of seeds.
        All arrays C-contiguous. BackendError when the graph is closed or another thread runs it.
        """
        steps, lanes = len(rows), len(x)
        eps = np.empty_like(x)
        x0 = np.empty((2, samples, *x.shape[1:]), np.float32) if keep_x0 else None
        network, update = np.zeros(steps), np.zeros(1)
        names = self._loaded.program.port_names
        index = {name: names.index(name) if name in names else NONE for name in ("x", "cond", "row", "eps")}
        call = Steps(
            x_port=index["x"], cond_port=index["cond"], row_port=index["row"], eps_port=index["eps"], steps=steps,
            row_count=rows.shape[1], samples=samples, lanes=lanes, rows=_at(rows), coefficients=_at(coefficients),
            x=_at(x), cond=_at(cond), eps=_at(eps), x0=_at(x0), seeds=_at(seeds), noise=_at(noise),
            noise_shared=int(noise is not None and noise.shape[1] != samples), guidance=guidance, first_step=0,
            step_ms=_at(network), update_ms=_at(update), failed_step=NONE,
        )  # fmt: skip
        with self._exclusive(), _typed(f"native graph {self.role!r} over {steps} steps"):
            failed = self._loaded.library.run_steps(self._own_handle(), call)
        return StepTimes(network.tolist(), float(update[0]), None if failed == NONE else failed)

    def _bind(self, outputs: Arrays) -> None:
        self._addresses = {name: array.ctypes.data for name, array in outputs.items()}

    def _run(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        addresses = self._addresses | {name: array.ctypes.data for name, array in arrays.items()}
        program = self._loaded.program
        batch, steps, row_count = 0, 0, 0
        for name, port in zip(program.port_names, program.ports, strict=True):
            if name not in arrays:
                continue
            if port.kind == PORT_KINDS["steps"]:
                steps = len(arrays[name])
            elif port.kind == PORT_KINDS["row"]:
                row_count = len(arrays[name])
            else:
                batch = len(arrays[name])
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        with _typed(f"native graph {self.role!r} on {shapes}"):
            self._loaded.library.run(
                self._own_handle(), [addresses[name] for name in program.port_names], batch=max(1, batch), steps=steps,
                row_count=row_count,
            )  # fmt: skip

    def _own_handle(self) -> int:
        """The handle, made again after a fork: threads stay behind in the process that started them."""
        if self._process != os.getpid():
            with _typed(f"native graph {self.role!r} in a forked process"):
                self._adopt(self._loaded.library.clone(self._handle, self.threads))
        return self._handle

    def _adopt(self, handle: int) -> None:
        """Take a handle of this process, which is closed with this graph, when forgotten, or at exit."""
        self._handle, self._process = handle, os.getpid()
        self._finalizer = weakref.finalize(self, _close, self._loaded, handle, self._process)

    def _release(self) -> None:
        self._finalizer()

    def _twin(self) -> NativeGraph:
        with _typed(f"native graph {self.role!r}, another handle over it"):
            handle = self._loaded.library.clone(self._handle, self.threads)
        return NativeGraph(self.role, self.spec, self.precision, self.threads, self._loaded, handle)


def _close(loaded: Loaded, handle: int, process: int) -> None:
    """Close a handle in the process that opened it; `loaded` is named so that the weights outlive the handle."""
    if process == os.getpid():
        loaded.library.close(handle)


def _at(array: npt.NDArray[np.generic] | None) -> int | None:
    return None if array is None else array.ctypes.data


@contextmanager
def _typed(what: str) -> Iterator[None]:
    """Raise what the library reports as one of the engine's errors."""
    try:
        yield
    except NativeError as error:
        raise engine_error(error, what) from error


def engine_error(error: NativeError, what: str) -> EngineError:
    """The engine's error for a status of the library, with what to do about it."""
    if error.status == native_library.BAD_PROGRAM:
        return BundleError(f"{what}: found {error}; expected a program that this engine can run; {REBUILD}")
    if error.status == native_library.BAD_CALL:
        return ArgumentError(f"{what}: found {error}; expected inputs within what the graph was built for; correct them")
    cures = {
        native_library.NO_MEMORY: "free some memory, or use fewer threads or a smaller batch",
        native_library.NO_THREADS: "lower threads=, or raise the limit on processes",
        native_library.UNSUPPORTED: f"unset {VARIABLE}, or choose another backend",
        native_library.BUSY: "give each thread its own graph with clone()",
        native_library.FORKED: "open the bundle again in this process",
    }
    return BackendError(f"{what}: found {error}; expected a result; {cures.get(error.status, 'try another backend')}")
