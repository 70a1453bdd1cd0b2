"""Failures on the way: things are given back, every step is run, the first failure is raised; a lack of memory has words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from engine.errors import EngineError, HostMemoryError


class _NoMemory:
    """A `with` block whose lack of memory is a sentence."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if isinstance(error, MemoryError):
            raise HostMemoryError(
                f"found no memory for this request ({error or type(error).__name__}), expected room for all results "
                "at once; ask for fewer images at a time, or lower max_batch"
            ) from error


NO_MEMORY = _NoMemory()


@contextmanager
def undo(step: Callable[[], object]) -> Iterator[None]:
    """Run `step` when the `with` block fails; a failure of the step itself is added to the first one as a note."""
    try:
        yield
    except BaseException as error:
        with noting(error):
            step()
        raise


@contextmanager
def noting(error: BaseException) -> Iterator[None]:
    """A failure inside the `with` block, while `error` is on its way up, goes along as a note."""
    try:
        yield
    except EngineError as second:
        note(error, second)


def note(error: BaseException, second: BaseException) -> None:
    """Add a second failure to the message of the first (Python 3.10 has no add_note)."""
    error.args = (f"{error.args[0] if error.args else ''} (cleaning up failed too: {second})", *error.args[1:])


def run_all(steps: Sequence[Callable[[], object]]) -> None:
    """Run every step, whatever fails in between; then raise the first failure."""
    first: EngineError | None = None
    for step in steps:
        try:
            step()
        except EngineError as error:
            first = first or error
    if first is not None:
        raise first
