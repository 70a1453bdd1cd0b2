"""The thread that runs the Sampler: requests wait in one bounded queue, and those that wait together run together."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter

from engine.cascade import Cascade
from engine.errors import BackendError, EngineError
from engine.http.answers import Answer
from engine.http.refusals import Refusal
from engine.sampler import Sampler
from engine.serving.groups import run_all
from engine.serving.warm import Measuring, warm_up
from engine.sizes import Size

LOG = logging.getLogger(__name__)
QUIET_S = 1.0  # without a request, before times for budgets are measured: clients who ask in turns are not to wait for that
SMOOTHING = 0.2  # of the mean time that a request takes, for Retry-After
Count = Callable[[Sequence[Answer], int], None]


class Worker:
    """One thread over one Sampler. `max_queue` is the most requests that are admitted and not yet taken into a run.

    largest: the size that clients may ask for at most, which is tried before the first of them.
    count: called with the answers and the number of runs after each turn.
    """

    def __init__(
        self, sampler: Sampler | Cascade, max_batch: int, max_queue: int, count: Count, largest: Size = None
    ) -> None:
        self.sampler, self.max_batch, self.max_queue = sampler, max_batch, max_queue
        self._count, self._largest = count, largest
        self._waiting: deque[Answer] = deque()
        self._admitted = 0
        self._changed = threading.Condition()
        self._closing = False
        self._request_s = 0.01
        self._asked = 0.0  # when the last request came or was answered; before the first one there is nothing to wait for
        self._unmeasured: Measuring | None = None
        if isinstance(sampler, Sampler) and sampler.bundle.manifest.fitted is not None:
            self._unmeasured = Measuring(sampler, range(1, max_batch + 1), LOG.info)
        self.ready = False
        self.failed: EngineError | None = None
        self._thread = threading.Thread(target=self._work, name="diffusevae-worker", daemon=True)

    def start(self) -> None:
        """Begin: the warm-up first, whose outcome is in `ready` and `failed`."""
        self._thread.start()

    def close(self) -> None:
        """Finish the run under way, refuse what waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests that were admitted and are in no run yet."""
        return self._admitted

    def admit(self) -> None:
        """Take a place for a request that is about to be read; Refusal 429 where none is free, 503 where none will be."""
        with self._changed:
            if self.failed is not None or self._closing:
                raise Refusal(503, f"this server is closing: {self.failed or 'it was stopped'}; ask another one")
            if self._admitted >= self.max_queue:
                seconds = max(1, math.ceil(self._admitted * self._request_s))
                raise Refusal(
                    429,
                    f"found {self._admitted} requests waiting, expected fewer than {self.max_queue}; ask in {seconds} s",
                    {"Retry-After": str(seconds)},
                )
            self._admitted += 1

    def give_back(self) -> None:
        """Free the place of a request that was admitted and could not be read."""
        with self._changed:
            self._admitted -= 1

    def submit(self, answer: Answer) -> None:
        """Let an admitted request wait for its run; its events follow."""
        with self._changed:
            self._waiting.append(answer)
            self._asked = monotonic()
            self._changed.notify()

    def _work(self) -> None:
        try:
            warm_up(self.sampler, self.max_batch, LOG.info, self._largest)
            self.ready = True
            while (taken := self._take()) is not None:
                if taken:
                    self._run(taken)
                elif self._unmeasured is not None:
                    self._unmeasured.step()
        except EngineError as error:
            self.failed = error
            LOG.error("%s", error)
        except Exception:  # a fault of ours: it is logged, and the server says that it can no more
            self.failed = BackendError("the worker's thread failed; the server's log says how. Start the server again")
            LOG.exception("the worker's thread failed")
        finally:
            self.ready = False
            self._refuse_all()

    def _run(self, taken: Sequence[Answer]) -> None:
        began = perf_counter()
        for answer in taken:
            answer.waited_ms = answer.passed_ms()
        try:
            runs = run_all(self.sampler, taken, LOG.info)
        except Exception:  # a fault of ours, which must not end the service for all: it is logged, and its clients are told
            LOG.exception("a run failed")
            runs = 1
            for answer in taken:
                if not answer.complete:
                    answer.fail(BackendError("this request met a fault of the server's, which its log describes. Report it"))
        self._asked = monotonic()
        each = (perf_counter() - began) / len(taken)
        self._request_s += SMOOTHING * (each - self._request_s)
        for answer in taken:
            answer.send_if_complete()  # one whose client left before its run
        self._count(taken, runs)

    def _take(self) -> list[Answer] | None:
        """The requests of the next turn, in the order of their arrival, as many as fill a run; none while it is quiet and
        there are times to measure; None when closing."""
        with self._changed:
            quiet = max(0.0, self._asked + QUIET_S - monotonic()) if self._unmeasured else None
            self._changed.wait_for(lambda: self._waiting or self._closing, quiet)
            if self._closing:
                return None
            if not self._waiting:
                return []
            taken = [self._waiting.popleft()]
            samples = _samples(taken[0])
            while self._waiting and samples + _samples(self._waiting[0]) <= self.max_batch:
                samples += _samples(self._waiting[0])
                taken.append(self._waiting.popleft())
            self._admitted -= len(taken)
            return taken

    def _refuse_all(self) -> None:
        with self._changed:
            self._closing = True
            left, self._waiting = list(self._waiting), deque()
            self._admitted -= len(left)
        for answer in left:
            answer.fail(Refusal(503, "the server was stopped before this request had its turn; ask another one"))
            answer.send_if_complete()


def _samples(answer: Answer) -> int:
    assert answer.ask is not None, "a request is read before it waits"
    return len(answer.ask)
