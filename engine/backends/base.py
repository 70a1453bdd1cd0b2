"""Backends and chains: what a runtime offers, whichever it is. Their graphs are in graph.py.

A `Backend` is one bundle opened on one runtime in one precision. It loads graphs, and makes the `Chain` that takes a
request through the pipeline: on the host step by step, in one native call, or on a device.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import metadata, util
from typing import Any, ClassVar, Protocol, TypeVar

from engine.backends.graph import Graph
from engine.bundle.graphs import PRECISIONS
from engine.bundle.onnx_file import Onnx, check_self_contained, with_weights
from engine.bundle.reader import Bundle
from engine.cleanup import run_all, undo
from engine.errors import ArgumentError, BackendError, did_you_mean
from engine.forks import OneProcess, forked
from engine.processor import Processor
from engine.request import Outcome, Request
from engine.result import Timings

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
    GUIDES         whether its chain adds the gradient of guides
    REGULARISES    whether its chain calls a second network in rows of its own
    ANY_SIZE       whether it runs graphs in other sizes than the bundle's own, where their files leave that free
    ONE_PROCESS    the runtime, where it has state of the whole process; such a child cannot open it again either
    """

    NAME: ClassVar[str]
    PRECISIONS: ClassVar[tuple[str, ...]]
    ON_DEVICE: ClassVar[bool] = False
    BY_NAME_ONLY: ClassVar[bool] = False
    FORKS: ClassVar[bool] = False
    GUIDES: ClassVar[bool] = True
    REGULARISES: ClassVar[bool] = True
    ANY_SIZE: ClassVar[bool] = True
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

    def clone(self: Self, bundle: Bundle | None = None) -> Self:
        """The same weights, loaded once for both, with states of its own; for another thread.

        bundle: the same of another size, whose graphs with maps are loaded again; None: this one.
        """
        other = self._another(bundle or self.bundle)
        with undo(other.close):
            with self._loading:
                loaded = dict(self._graphs)
            for name, graph in loaded.items():
                alike = other.bundle.spec(name) == self.bundle.spec(name)
                other._graphs[name] = graph.clone() if alike else other.load_beside(name, graph)
        return other

    def working_bytes(self, batch: int) -> int:
        """Memory that the loaded graphs touch for a batch, beside weights, inputs and outputs; 0 where none says it."""
        del batch
        return 0

    def load_beside(self, name: str, graph: Graph) -> Graph:
        """`load`, where the same graph is there in another size: with its weights, where the runtime can."""
        del graph
        return self.load(name)

    def _another(self: Self, bundle: Bundle) -> Self:
        return type(self)(bundle, self.precision, self.threads)

    def close(self) -> None:
        """Free every graph; closing twice does no harm."""
        graphs, self._graphs = self._graphs, {}
        run_all([graph.close for graph in graphs.values()])


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


def read_onnx(bundle: Bundle, key: str) -> Onnx:
    """The verified bytes of a graph, and its weights where they are not inside; BundleError for any that lie elsewhere."""
    data, spec, mapped = bundle.read_graph(key), bundle.spec(key), bundle.map_weights(key)
    where = str(bundle.path / spec.file)
    if mapped is not None and spec.weights is not None:
        return with_weights(data, where, spec.weights.file, memoryview(mapped))
    check_self_contained(data, where)
    return Onnx(data)


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
