"""A bundle that is open on a backend: one request at a time, clones for other threads, pickles, fork, the end."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from engine import backends, kernels
from engine.bundle.links import AllowLinks
from engine.bundle.reader import Bundle
from engine.cleanup import NO_MEMORY, run_all
from engine.deadline import Deadlines
from engine.errors import ArgumentError, BundleError, SamplerStateError
from engine.pipeline import Pipeline
from engine.sizes import KEPT, Size, Sized, Sizes, check_kept, least
from engine.threads import resolve_threads

if TYPE_CHECKING:
    from typing_extensions import Self


class Opened:
    """What `Sampler` is below its verbs; it says what the arguments mean."""

    def __init__(
        self,
        path: str | os.PathLike[str] | Bundle,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        *,
        max_batch: int = 64,
        device: object = None,
        allow_links: AllowLinks = False,
        size: Size = None,
        overlap: float | None = None,
        sizes: int = KEPT,
    ) -> None:
        if max_batch < 1:
            raise ArgumentError(f"max_batch is {max_batch}; expected at least 1.")
        self._sizes = Sizes(check_kept(sizes))
        kernels.implementation()  # a missing library is said before anything is loaded
        if isinstance(path, Bundle) and allow_links:
            raise ArgumentError(
                f"allow_links: found {allow_links!r} with a Bundle that is open, expected none; give it to Bundle.open"
            )
        found = path if isinstance(path, Bundle) else Bundle.open(path, allow_links)
        self.bundle = found.resized(size, overlap)
        self._opened_with = (backend, precision, threads, max_batch, self._sizes.kept, device)
        self.backend, self.precision, self.choice = backends.choose(self.bundle.of_graphs, backend, precision)
        self.threads = resolve_threads(threads)
        opened = backends.open_backend(self.bundle.of_graphs, self.backend, self.precision, self.threads, device)
        self._pipeline = Pipeline.open(self.bundle, opened, int(max_batch))
        self._deadlines = Deadlines(self._pipeline)
        self.max_batch = self._pipeline.max_batch
        self._lock, self._process = threading.Lock(), os.getpid()
        self._closed = False

    def clone(self) -> Self:
        """A Sampler over the same weights with states and buffers of its own, for another thread.

        Can be called while this one runs; each of the two is closed by itself.
        """
        self._check_process()
        self._check_open()
        return self._twin(self.bundle)

    def _twin(self, bundle: Bundle) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.bundle, twin._pipeline = bundle, self._pipeline.clone(bundle)
        twin._deadlines = Deadlines(twin._pipeline, self._deadlines.times if bundle is self.bundle else None)
        twin._lock, twin._sizes = threading.Lock(), Sizes(self._sizes.kept)
        return twin

    def _at(self, size: Size, *, n: Any = None, seeds: Any = None, images: Any = None) -> Sized:
        """What runs requests of a size, in the turn of this Sampler; None is its own. The others say how many samples a
        request has, so that what has no room is refused before anything is loaded."""
        own = Sized(self._pipeline, self._deadlines)
        return own if size is None else self._sizes.at(own, self.backend, size, least(n, seeds, images))

    def resized(self, size: tuple[int, int], *, overlap: float | None = None) -> Self:
        """A clone for images of this height and width: its networks run on the whole of them, or on windows.

        size     of the images that the pipeline makes; those that it takes grow alike. On the whole in steps of what its
                 networks halve, from one step on; on windows from the bundle's own size on, in steps of the first stage's
                 factor
        overlap  None runs every graph on the whole at once: attention sees all of it, no borders. 0 .. 0.9 runs them on
                 windows of the bundle's own size, of which the next one covers this share, step by step on the host: the
                 reference takes 0.5. With 0 borders show
        Weights are shared where the runtime can: always with backend native. The noise of a seed is laid out from the upper
        left: what a canvas has there, a larger one has too. ArgumentError for a bundle in which something depends on the
        whole picture; BackendError where the backend runs no graph of that size (such as plans of TensorRT).
        """
        self._check_process()
        self._check_open()
        bundle = self.bundle.resized(size, overlap)
        backends.check_size(bundle.of_graphs, self.backend)
        return self._twin(bundle)

    def __copy__(self) -> Self:
        return self.clone()

    def __deepcopy__(self, memo: object) -> Self:
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds what this was opened with, and the bundle's hash; unpickling opens the bundle again."""
        self._check_open()
        device = self._opened_with[-1]
        if device is not None and not isinstance(device, int):
            raise ArgumentError(
                f"device: found {device!r}, which belongs to this process, expected None or a number for a Sampler that is "
                "pickled; open it with the GPU's number"
            )
        bundle = self.bundle
        again = os.path.abspath(bundle.path), bundle.stores, bundle.digest, *bundle.resizing
        return _open_again, (type(self), *again, *self._opened_with)

    def close(self) -> None:
        """Free graphs and buffers; closing twice does no harm."""
        if self._closed:
            return
        if self._process != os.getpid():
            self._closed = True  # a child's copy: what it holds is the parent's
            return
        with NO_MEMORY, self._turn():
            self._closed = True
            run_all([self._sizes.close, self._pipeline.close])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.bundle.path)!r}, backend={self.backend!r}, precision={self.precision!r})"

    def _turn(self) -> threading.Lock:
        """What a run holds: a second one would overwrite the graphs' and buffers' contents of the first, and is refused.

        The lock itself, for `with`: Python runs no signal's handler between taking it and the block, so that none can raise
        and leave it taken. Of two threads that ask at the same instant one waits.
        """
        self._check_process()
        self._check_open()
        if self._lock.locked():
            raise SamplerStateError(
                "This Sampler is running already, in another thread or below the callback that called it; "
                "expected one request at a time. Give each thread its own with sampler.clone()."
            )
        return self._lock

    def _check_process(self) -> None:
        """In a child of fork: locks of its own, as those of the parent may be held for ever; or a refusal where the
        backend's threads stayed in the parent."""
        if self._process == os.getpid():
            return
        self._pipeline.backend.enter_child()
        self._sizes.enter_child()
        self._lock, self._process = threading.Lock(), os.getpid()
        self._deadlines = Deadlines(self._pipeline)

    def _check_open(self) -> None:
        if self._closed:
            raise SamplerStateError("This Sampler is closed; expected an open one. Open the bundle again.")


def _open_again(
    kind: type[Opened],
    path: str,
    stores: tuple[str, ...],
    digest: str,
    size: tuple[int, int] | None,
    overlap: float | None,
    backend: str,
    precision: str,
    threads: int | None,
    max_batch: int,
    sizes: int,
    device: Any,
) -> Opened:
    """What a pickle calls; BundleError when another bundle lies there now."""
    bundle = Bundle.open(path, stores)
    if bundle.digest != digest:
        raise BundleError(
            f"{path}: found the bundle {bundle.digest}, expected {digest} as when the Sampler was pickled; it was built "
            f"again since: open it anew with Sampler({path!r})"
        )
    return kind(
        bundle, backend, precision, threads, max_batch=max_batch, device=device, size=size, overlap=overlap, sizes=sizes
    )
