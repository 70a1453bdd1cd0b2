"""Graphs: one of a bundle, ready to run, whichever runtime it is loaded in."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from engine.bundle.graphs import GraphSpec
from engine.bundle.tensors import TensorSpec
from engine.commands import command
from engine.errors import ArgumentError, BackendError, did_you_mean
from engine.forks import OneProcess, forked, leave_to_parent

Arrays = dict[str, npt.NDArray[np.generic]]


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
        with self._turn():
            if arrays.keys() != self._inputs.keys():
                self._refuse_names(arrays)
            sizes: dict[str, int] = {}
            for name, expected in self._inputs.items():
                expected.check(arrays[name], sizes)
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

    def _turn(self) -> threading.Lock:
        """What a call holds, as `Sampler._turn`: one thread at a time, and none once closed."""
        self._check_process()
        self._check_open()
        if self._lock.locked():
            raise BackendError(
                f"{self.backend} graph {self.name!r}: found a second thread calling it while one runs, expected one "
                f"at a time (its buffers would be overwritten); give each thread its own with clone()"
            )
        return self._lock

    def _check_process(self) -> None:
        """BackendError where this process has but a copy of the graph, without the threads that run it."""
        if self._opened_in != os.getpid():
            raise forked(f"{self.backend} graph {self.name!r}", self._one_process)

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(
                f"{self.backend} graph {self.name!r}: found a closed graph, expected an open one; load it again"
            )

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
        flags, usable = array.flags, True
        for output in self._outputs.values():
            usable &= not np.may_share_memory(array, output)
        return array if usable and flags.c_contiguous and flags.aligned and flags.writeable else array.copy(order="C")

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
