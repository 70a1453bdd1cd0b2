"""Graphs of the native engine: a checked program over mapped weights, and the whole loop of a sampler in one call."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.backends.graph import Arrays, Graph
from engine.backends.native.isa import VARIABLE, instruction_set, load_library
from engine.backends.native.program import (
    PORT_KINDS,
    ParsedProgram,
    check_ports,
    op_kind,
    op_side,
    parse_program,
    resized,
)
from engine.backends.native.weights import Weights
from engine.bundle.canvas import Canvas
from engine.bundle.fields import REBUILD
from engine.bundle.graphs import GraphSpec
from engine.errors import ArgumentError, BackendError, BundleError, EngineError
from engine.kernels import native_library
from engine.kernels.native_library import MAX_THREADS, Flat, NativeError, NativeLibrary, Steps
from engine.kernels.operands import address

NAME = "native"
PRECISIONS = ("bf16", "int8")


def open_graph(
    program: bytes,
    weights: Weights,
    spec: GraphSpec,
    name: str,
    precision: str,
    threads: int,
    where: str,
    canvas: Canvas | None = None,
) -> NativeGraph:
    """A graph over a program's bytes and its weights, in the size of a canvas where there is one, which `spec` then is of;
    `where` names it in messages."""
    parsed = parse_program(program, weights.blobs, name, precision, where)
    return _open_program(parsed, weights, spec, name, threads, where, canvas)


def _open_program(
    own: ParsedProgram, weights: Weights, spec: GraphSpec, name: str, threads: int, where: str, canvas: Canvas | None
) -> NativeGraph:
    count = min(threads, MAX_THREADS)
    library, isa = load_library(), instruction_set()
    parsed = resized(own, canvas, name)
    check_ports(parsed, spec, where)
    flat = Flat(parsed.ports, parsed.tensors, parsed.ops, parsed.blobs, weights.data)
    try:
        handle = library.open(flat, isa, count)
    except NativeError as error:
        if error.status == native_library.BAD_PROGRAM and canvas is not None and parsed is not own:
            raise _too_large(error, where, canvas) from error
        raise engine_error(error, where) from error
    return NativeGraph(name, spec, own.precision, count, Loaded(own, parsed, weights, library, where), handle)


def _too_large(error: NativeError, where: str, canvas: Canvas) -> BackendError:
    """The judge's sentence on a program in another size than its own, and what to do about it."""
    (height, width), own = canvas.whole, canvas.window
    return BackendError(
        f"size: found a state of {height} x {width} (the bundle's own is {own[0]} x {own[1]}), which backend native does "
        f"not run: {where}, {error}. Pass overlap=0.5 too, for tiles of the bundle's own size, or choose another backend."
    )


@dataclass(frozen=True)
class Loaded:
    """What all handles over one program share: as it is in the file (`own`), and in the size that it runs in."""

    own: ParsedProgram
    program: ParsedProgram
    weights: Weights
    library: NativeLibrary
    where: str


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

    def __init__(self, name: str, spec: GraphSpec, precision: str, threads: int, loaded: Loaded, handle: int) -> None:
        super().__init__(name, spec, precision, threads)
        self._loaded = loaded
        self._adopt(handle)
        self._addresses: dict[str, int] = {}
        program = loaded.program
        self._kinds = {name: port.kind for name, port in zip(program.port_names, program.ports, strict=True)}

    @property
    def isa(self) -> str:
        """The instruction set that this graph runs on."""
        return str(self._loaded.library.describe(self._own_handle()).isa.decode())

    @property
    def arena_bytes(self) -> int:
        """Memory of this handle beside the weights, which are shared."""
        return int(self._loaded.library.describe(self._own_handle()).arena_bytes)

    def working_bytes(self, batch: int) -> int:
        """About the memory that runs of so many samples touch for their maps, known before any is touched."""
        info = self._loaded.library.describe(self._own_handle())
        tile = max(1, int(info.batch_tile))  # 0 in a program of rows
        return int(info.arena_bytes) * min(batch, tile) // tile

    def resized(self, spec: GraphSpec, canvas: Canvas | None) -> NativeGraph:
        """A graph over the same mapped weights in the size of a canvas, or in the bundle's own for None."""
        self._check_open()
        loaded = self._loaded
        return _open_program(loaded.own, loaded.weights, spec, self.name, self.threads, loaded.where, canvas)

    def operation_times(self, runs: int, arrays: Mapping[str, npt.NDArray[np.generic]]) -> list[OperationTime]:
        """Call the graph on these inputs so many times and tell where the time of a call went, in the program's order."""
        library, program = self._loaded.library, self._loaded.program
        try:
            library.profile(self._own_handle(), True)
            try:
                for _ in range(runs):
                    self(**arrays)
            finally:
                library.profile(self._own_handle(), False)
        except NativeError as error:
            raise engine_error(error, f"native graph {self.name!r}, the clocks of its operations") from error
        timings = library.timings(self._own_handle(), len(program.ops))
        return [
            OperationTime(
                name, op_kind(op), op_side(program, op), t.prepare_us / runs, t.product_us / runs, t.flop / runs,
                t.weight_bytes / runs,
            )
            for name, op, t in zip(program.op_names, program.ops, timings, strict=True)
        ]  # fmt: skip

    @property
    def ports(self) -> tuple[str, ...]:
        """The program's ports, in the order of its numbers."""
        return self._loaded.program.port_names

    def run_steps(self, steps: Steps, stop: Callable[[], object] | None = None) -> int:
        """A whole chain in one call (`Loop.call`): the first row whose e was not finite, or NONE.

        stop: asked every few milliseconds; `Stopped` where its answer is true. BackendError when the graph is closed or
        another thread runs it.
        """
        with self._turn():
            try:
                return self._loaded.library.run_steps(self._own_handle(), steps, stop)
            except NativeError as error:
                raise engine_error(error, f"native graph {self.name!r} over {steps.steps} steps") from error

    def _bind(self, outputs: Arrays) -> None:
        self._addresses = {name: address(array) for name, array in outputs.items()}

    def _run(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        addresses, program = dict(self._addresses), self._loaded.program
        batch, steps, row_count = 1, 0, 0
        for name, array in arrays.items():
            addresses[name] = address(array)
            kind = self._kinds[name]
            if kind == PORT_KINDS["steps"]:
                steps = len(array)
            elif kind == PORT_KINDS["row"]:
                row_count = len(array)
            else:
                batch = len(array)
        pointers = [addresses[name] for name in program.port_names]
        try:
            self._loaded.library.run(self._own_handle(), pointers, batch=batch, steps=steps, row_count=row_count)
        except NativeError as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise engine_error(error, f"native graph {self.name!r} on {shapes}") from error

    def _check_process(self) -> None:
        """A child gets a handle of its own, with its first call."""

    def _own_handle(self) -> int:
        """The handle, made again after a fork: threads stay behind in the process that started them.

        BackendError when the graph is closed: a library takes an address at its word.
        """
        self._check_open()
        if self._process != os.getpid():
            self._adopt(self._another(" in a forked process"))
        return self._handle

    def _adopt(self, handle: int) -> None:
        """Take a handle of this process, which is closed with this graph, when forgotten, or at exit."""
        self._handle, self._process = handle, os.getpid()
        self._finalizer = weakref.finalize(self, _close, self._loaded, handle, self._process)

    def _release(self) -> None:
        self._finalizer()

    def _twin(self) -> NativeGraph:
        return NativeGraph(
            self.name, self.spec, self.precision, self.threads, self._loaded, self._another(", another handle over it")
        )

    def _another(self, why: str) -> int:
        """Another handle over the same plan and weights."""
        try:
            return self._loaded.library.clone(self._handle, self.threads)
        except NativeError as error:
            raise engine_error(error, f"native graph {self.name!r}{why}") from error


def _close(loaded: Loaded, handle: int, process: int) -> None:
    """Close a handle in the process that opened it; `loaded` is named so that the weights outlive the handle."""
    if process == os.getpid():
        loaded.library.close(handle)


def engine_error(error: NativeError, what: str) -> EngineError:
    """The engine's error for a status of the library, with what to do about it."""
    if error.status == native_library.BAD_PROGRAM:
        return BundleError(f"{what}, {error}; {REBUILD}")
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
