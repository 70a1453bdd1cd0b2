"""One checkout's half of compare.py: a long-lived process that samples with the engine of that checkout.

It imports nothing from the checkout that it is started from: numpy, and `engine` of the folder that is named.

    python benchmarks/latency/side.py FD CHECKOUT        (started by compare.py; FD is its end of the pipe)
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Side:
    """The samplers of one checkout, by bundle."""

    def __init__(self, checkout: Path) -> None:
        self._engine = import_module("engine")
        self._samplers: dict[str, Any] = {}
        found = Path(str(self._engine.__file__)).resolve()
        if checkout.resolve() not in found.parents:
            raise RuntimeError(f"found the engine in {found.parent}, expected that of {checkout}")

    def facts(self) -> dict[str, Any]:
        """The engine's version, its kernels, and where it was imported from."""
        return {"version": self._engine.__version__, "kernels": _kernels()}

    def open(self, bundle: str, backend: str, precision: str, threads: int) -> dict[str, Any]:
        """Open a bundle; the bundles opened before are closed, so that one holds the processors at a time."""
        self.close()
        sampler = self._samplers[bundle] = self._engine.Sampler(bundle, backend, precision, threads)
        return {"backend": sampler.backend, "precision": sampler.precision, "threads": sampler.threads}

    def images(self, bundle: str, n: int, steps: int) -> Any:
        """uint8 images of the seeds 0 .. n - 1."""
        return self._samplers[bundle].sample(n, steps=steps, seed=0).images

    def turn(self, bundle: str, n: int, steps: int, repeats: int) -> list[float]:
        """Milliseconds of so many whole runs, after one of a single step that does not count: the other side has emptied
        the caches."""
        sampler, times = self._samplers[bundle], []
        sampler.sample(n, steps=1, spacing="linspace", seed=0)
        for seed in range(repeats):
            started = time.perf_counter()
            sampler.sample(n, steps=steps, seed=seed)
            times.append(1e3 * (time.perf_counter() - started))
        return times

    def close(self) -> None:
        """Close every sampler."""
        while self._samplers:
            self._samplers.popitem()[1].close()


def _kernels() -> dict[str, str]:
    """What the step's update runs on; the package had its place elsewhere in older checkouts."""
    for name in ("engine.kernels", "kernels"):
        try:
            found = import_module(name).implementation()
            return {key: str(found[key]) for key in ("name", "isa") if key in found}
        except (ImportError, AttributeError):
            continue
    return {"name": "unknown"}


def serve(pipe: Connection, checkout: Path) -> None:
    """Answer (method, arguments) until the pipe closes; an error is the answer to the call that raised it."""
    side: Side | None = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            side = side or Side(checkout)
            pipe.send(("ok", getattr(side, method)(*arguments)))
        except Exception as error:  # whatever that checkout raises is to be told with its name
            pipe.send(("failed", f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]
    serve(Connection(int(sys.argv[1])), Path(sys.argv[2]))
