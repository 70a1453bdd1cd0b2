"""Backends and chains: what a runtime offers, whichever it is.

A `Backend` is one bundle opened on one runtime in one precision. It loads graphs, and makes the `Chain` that takes a
request through the pipeline: on the host step by step, in one native call, or on a device.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata, util
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from engine.bundle.graphs import PRECISIONS, GraphSpec
from engine.bundle.onnx_file import check_self_contained
from engine.bundle.reader import Bundle
from engine.bundle.tensors import TensorSpec
from engine.cleanup import run_all, undo
from engine.commands import command
from engine.errors import ArgumentError, BackendError, did_you_mean
from engine.forks import OneProcess, forked, leave_to_parent
from engine.processor import Processor
from engine.request import Outcome, Request
from engine.result import Timings

Arrays = dict[str, npt.NDArray[np.generic]]
Self = TypeVar("Self", bound="Backend")


class Chain(Protocol):
    """What takes requests through a pipeline. One thread at a time; usable again after any error."""

    def limit(self, lanes: int) -> int:
        """The most samples that one request may have with so many lanes."""

    def run(self, request: Request, timings: Timings) -> Outcome:
        """The samples of a request. NumericsError names graph and step, Cancelled where `watch` stopped it; what `watch`
        raises passes through."""

    def close(self) -> None:
        """Give back everything but the graphs."""


class DeviceChain(Chain, Protocol):
    """A chain whose arrays live on a device and may stay there."""

    def results(self, request: Request) -> dict[str, Any]:
        """Room on the device for a request's results by name ("images", "x", and values), which the caller owns."""

    def run_into(self, request: Request, timings: Timings, into: Mapping[str, Any]) -> None:
        """The results of a request into `into`, on the device."""

    def borrow(self, array: Any, name: str) -> Any:
        """A foreign array on the device as this chain takes it; it waits until its owner has written it."""

    def wait_for(self, stream: int) -> None:
        """Start nothing before what was enqueued in a caller's stream until now is done."""


class Backend(ABC):
    """One bundle on one runtime. Subclasses say how a graph is loaded, and may bring a chain of their own.

    NAME           what a caller calls it
    PRECISIONS     those it has; the first is its own choice where a bundle leaves one
    ON_DEVICE      whether arrays live on a device, which `open` then takes
    BY_NAME_ONLY   never chosen by "auto"
    FORKS          whether a child of fork() goes on with what its parent opened
    ONE_PROCESS    the runtime, where it has state of the whole process; such a child cannot open it again either
    """

    NAME: ClassVar[str]
    PRECISIONS: ClassVar[tuple[str, ...]]
    ON_DEVICE: ClassVar[bool] = False
    BY_NAME_ONLY: ClassVar[bool] = False
    FORKS: ClassVar[bool] = False
    ONE_PROCESS: ClassVar[OneProcess | None] = None

    def __init__(self, bundle: Bundle, precision: str, threads: int) -> None:
        self.bundle, self.precision, self.threads = bundle, precision, threads
        self._graphs: dict[str, Graph] = {}
        self._loading = threading.Lock()

    # ---- what can be told without opening anything -------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def available(cls) -> tuple[bool, str]:
        """(whether it runs here, its version or how to mend that), without importing the runtime."""

    @classmethod
    def check_processor(cls, precision: str, processor: Processor) -> None:
        """BackendError when it cannot compute in this precision on this processor; this one can."""
        return

    @classmethod
    def default_precision(cls, bundle: Bundle, processor: Processor) -> str:
        """The precision for a caller who named this backend but no precision."""
        return cls.PRECISIONS[0]

    @classmethod
    def auto_precision(cls, bundle: Bundle, precision: str, processor: Processor) -> str | None:
        """The precision in which "auto" would take this backend for what was asked, or None where it would not."""
        return cls.default_precision(bundle, processor) if precision == "auto" else precision

    @classmethod
    def open(cls: type[Self], bundle: Bundle, precision: str, threads: int, device: object = None) -> Self:
        """This backend over a bundle. ArgumentError for a device that it does not take."""
        check_precision(precision, cls.PRECISIONS, cls.NAME)
        if device is not None:
            raise ArgumentError(
                f"device: found {device!r} with backend {cls.NAME!r}, which runs on the CPU; expected none: leave it out, "
                "or choose a backend on a device, such as tensorrt"
            )
        return cls(bundle, precision, threads)

    # ---- graphs ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def load(self, name: str) -> Graph:
        """Load one graph of the bundle in the precision that the manifest gives it under this backend's.

        BackendError when this machine cannot run it, BundleError when it is damaged.
        """

    def graph(self, name: str) -> Graph:
        """The graph of this name, loaded when it is first asked for."""
        # A clone may be made in one thread while another runs: a graph is loaded once even so.
        with self._loading:
            if name not in self._graphs:
                self._graphs[name] = self.load(name)
            return self._graphs[name]

    def enter_child(self) -> None:
        """Make this usable in a child of fork(); BackendError where its threads or its device stayed in the parent."""
        if not self.FORKS:
            raise forked(f"backend {self.NAME!r}", self.ONE_PROCESS)
        self._loading = threading.Lock()
        for graph in self._graphs.values():
            graph._lock = threading.Lock()

    def computes_in(self, name: str) -> str:
        """The precision of a graph on this backend."""
        return self.bundle.spec(name).computes_in(self.precision)

    @abstractmethod
    def chain(self) -> Chain:
        """What takes requests through the bundle's pipeline over this backend's graphs."""

    def device_chain(self) -> DeviceChain:
        """The same for results that stay on a device. ArgumentError where the backend runs on the CPU."""
        raise ArgumentError(
            f"found backend {self.NAME!r}, which runs on the CPU, expected one on a device, such as tensorrt; pass arrays "
            "on the host and call sample"
        )

    def clone(self: Self) -> Self:
        """The same weights, loaded once for both, with states of its own; for another thread."""
        other = self._another()
        with undo(other.close):
            with self._loading:
                loaded = dict(self._graphs)
            for name, graph in loaded.items():
                other._graphs[name] = graph.clone()
        return other

    def _another(self: Self) -> Self:
        return type(self)(self.bundle, self.precision, self.threads)

    def close(self) -> None:
        """Free every graph; closing twice does no harm."""
        graphs, self._graphs = self._graphs, {}
        run_all([graph.close for graph in graphs.values()])


class Graph(ABC):
    """One graph of a bundle, ready to run: `graph(**inputs) -> {output name: array}`.

    The arrays returned are valid until the next call of the same graph: they are its buffers, and are reused as long
    as the shapes repeat. One thread uses a graph at a time (a second one is refused); `clone()` gives each thread its
    own state over the same weights.

    Attributes: name, backend, precision (as obtained from the runtime), threads, spec.
    """

    backend: str
    _failures: tuple[type[Exception], ...]  # what the runtime's native half raises
    _one_process: OneProcess | None = None  # as Backend.ONE_PROCESS

    def __init__(self, name: str, spec: GraphSpec, precision: str, threads: int) -> None:
        self.name = name
        self.spec = spec
        self.precision = precision
        self.threads = threads
        self._inputs = {tensor.name: _Input(name, tensor) for tensor in spec.inputs}
        self._lock = threading.Lock()
        self._closed = False
        self._opened_in = os.getpid()
        leave_to_parent(self)
        self._shapes: dict[str, int] = {}
        self._outputs: Arrays = {}

    def __call__(self, **arrays: npt.NDArray[np.generic]) -> Arrays:
        """Run on arrays of exactly the manifest's names, dtypes and shapes; float32 may have any strides.

        ArgumentError when an input does not fit, BackendError when the runtime fails, when the graph is closed, or
        when another thread is running it.
        """
        with self._exclusive():
            sizes = self._check(arrays)
            try:
                self._bind_outputs(sizes)
                self._run({name: self._usable(array) for name, array in arrays.items()})
            except self._failures as error:
                self._shapes = {}
                raise self._failure(error, arrays) from error
            return dict(self._outputs)

    def close(self) -> None:
        """Give the runtime's memory back; harmless when closed already. Not while another thread runs the graph."""
        if self._opened_in != os.getpid() and not self._closed:
            self._closed = True  # the parent's, who ends it
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._outputs, self._shapes = {}, {}
                self._release()

    def clone(self) -> Graph:
        """The same weights, not loaded again, with buffers of its own; for another thread. BackendError when closed."""
        self._check_process()
        self._check_open()
        return self._twin()

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.backend} graph {self.name!r}, {self.precision}, {self.threads} threads>"

    @abstractmethod
    def _bind(self, outputs: Arrays) -> None:
        """Hand the buffers of the outputs to the runtime."""

    @abstractmethod
    def _run(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Run on contiguous inputs and fill the bound outputs."""

    def held(self) -> tuple[object, ...]:
        """The runtime's objects, where their end waits for threads: left to the parent in a child of fork()."""
        return ()

    @abstractmethod
    def _release(self) -> None:
        """Drop whatever holds native memory."""

    @abstractmethod
    def _twin(self) -> Graph:
        """A graph over the same weights with its own state."""

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One thread at a time, and none once closed."""
        self._check_process()
        if not self._lock.acquire(blocking=False):
            raise BackendError(
                f"{self.backend} graph {self.name!r}: found a second thread calling it while one runs, expected one "
                f"at a time (its buffers would be overwritten); give each thread its own with clone()"
            )
        try:
            self._check_open()
            yield
        finally:
            self._lock.release()

    def _check_process(self) -> None:
        """BackendError where this process has but a copy of the graph, without the threads that run it."""
        if self._opened_in != os.getpid():
            raise forked(f"{self.backend} graph {self.name!r}", self._one_process)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(
                f"{self.backend} graph {self.name!r}: found a closed graph, expected an open one; load it again"
            )

    def _check(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, int]:
        """Check names, dtypes and shapes; the size of each free dimension."""
        if arrays.keys() != self._inputs.keys():
            self._refuse_names(arrays)
        sizes: dict[str, int] = {}
        for name, expected in self._inputs.items():
            expected.check(arrays[name], sizes)
        return sizes

    def _refuse_names(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> NoReturn:
        unknown = [name for name in arrays if name not in self._inputs]
        hint = did_you_mean(unknown[0], self._inputs) if unknown else ""
        raise ArgumentError(
            f"{self.name}: found the inputs {', '.join(arrays) or 'none'}, expected exactly "
            f"{', '.join(self._inputs)}; pass each by its name.{hint}"
        )

    def _usable(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The array itself, or a copy where the runtime could not read it in place."""
        # A result of the last call lies in a buffer that this call writes while it still reads its inputs.
        overlaps = any(np.may_share_memory(array, output) for output in self._outputs.values())
        flags = array.flags
        if flags.c_contiguous and flags.aligned and flags.writeable and not overlaps:
            return array
        return array.copy(order="C")

    def _bind_outputs(self, sizes: dict[str, int]) -> None:
        """Allocate the outputs for these free dimensions, unless the last call had the same."""
        if sizes == self._shapes:
            return
        self._outputs = {
            tensor.name: np.empty([sizes[d] if isinstance(d, str) else d for d in tensor.shape], tensor.dtype)
            for tensor in self.spec.outputs
        }
        self._bind(self._outputs)
        self._shapes = sizes

    def _failure(self, error: Exception, arrays: Mapping[str, npt.NDArray[np.generic]]) -> BackendError:
        """The BackendError for a native exception while running."""
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        return BackendError(
            f"{self.backend} graph {self.name!r} on {shapes}: found {type(error).__name__}: {error}; expected a result; "
            f"check the free memory, a smaller batch, and the bundle with: {command('verify', 'BUNDLE')}"
        )


class _Input:
    """What one input must be; checking costs about a microsecond."""

    def __init__(self, graph: str, tensor: TensorSpec) -> None:
        self._graph = graph
        self._tensor = tensor
        self._dtype = np.dtype(tensor.dtype)
        self._dims = tensor.shape

    def check(self, array: npt.NDArray[np.generic], sizes: dict[str, int]) -> None:
        """Raise ArgumentError unless the array fits; note the free dimensions in `sizes`."""
        if type(array) is not np.ndarray or array.dtype != self._dtype or array.ndim != len(self._dims):
            self._refuse(array, "")
        for dim, size in zip(self._dims, array.shape, strict=True):
            if isinstance(dim, str):
                if sizes.setdefault(dim, size) != size:
                    self._refuse(array, f", where {dim} is {sizes[dim]} as in the inputs before it")
                if size < 1:
                    self._refuse(array, f" with {dim} of at least 1")
            elif dim != size:
                self._refuse(array, "")

    def _refuse(self, array: object, more: str) -> None:
        found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        wanted = ", ".join(map(str, self._dims))
        raise ArgumentError(
            f"{self._graph}, {self._tensor.name}: found {found}, expected a numpy array "
            f"{self._tensor.dtype}[{wanted}]{more}; convert the input"
        )


def check_precision(precision: str, supported: tuple[str, ...], backend: str) -> None:
    """ArgumentError for an unknown precision, BackendError for one that this backend does not have."""
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}."
            f"{did_you_mean(str(precision), PRECISIONS)}"
        )
    if precision not in supported:
        raise BackendError(
            f"{backend}: found precision {precision!r}, expected one of those it has: {', '.join(supported)}; "
            f"choose one, or another backend"
        )


def package_available(name: str) -> tuple[bool, str]:
    """(whether a package is installed, its version or how to mend that), without importing it."""
    if util.find_spec(name) is None:
        return False, f"not installed; install it with: pip install {name}"
    try:
        return True, f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return True, f"{name} (version unknown)"  # another distribution of the same module, such as onnxruntime-gpu


def read_onnx(bundle: Bundle, key: str) -> bytes:
    """The verified bytes of a graph, whose weights are all inside them; BundleError otherwise."""
    data = bundle.read_graph(key)
    check_self_contained(data, str(bundle.path / bundle.spec(key).file))
    return data


def check_tensors(bundle: Bundle, key: str, found: Mapping[str, tuple[str, list[int | str | None]]]) -> None:
    """BackendError when a loaded graph's own inputs and outputs are not what the manifest says.

    found: {name: (dtype, shape)}; a free dimension is a text or None.
    """
    spec = bundle.spec(key)
    for tensor in (*spec.inputs, *spec.outputs):
        dtype, shape = found.get(tensor.name, ("nothing", []))
        fixed = [None if isinstance(d, str) else d for d in shape]
        expected = [None if isinstance(d, str) else d for d in tensor.shape]
        if (dtype, fixed) != (tensor.dtype, expected):
            raise BackendError(
                f"{bundle.path}, graph {key!r}: found {tensor.name} as {dtype}{shape} in the file, expected {tensor} "
                f"as the manifest says; rebuild the bundle"
            )
    extra = set(found) - {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
    if extra:
        raise BackendError(
            f"{bundle.path}, graph {key!r}: found {', '.join(sorted(extra))} in the file beside the tensors of the "
            f"manifest, expected none; rebuild the bundle"
        )
