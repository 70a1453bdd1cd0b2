"""What a server does before its first request: try the network at batch 1 and at the largest, and time it for budgets."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from engine.bundle.examples import example_inputs
from engine.errors import BackendError, EngineError
from engine.sampler import Sampler
from engine.serving.groups import Log

FOREVER = 1e12  # ms: a budget that the best setting keeps


def warm_up(sampler: Sampler, max_batch: int, log: Log) -> None:
    """One image as clients get it who ask for nothing special, and one step of the largest batch: is there room for it?

    config.pbtxt's model_warmup does the same through the server, but must not be the first to fail: Triton 2.51 can crash
    while it takes such a model down (a model with dynamic batching, five of seven times).
    """
    manifest = sampler.bundle.manifest
    examples = example_inputs(manifest)
    if examples is None:
        log(f"{manifest.name}: no warm-up: an input must be given whose size each request decides")
        return
    try:
        sampler.sample(1, seed=0, **examples)
        shortest: dict[str, Any] = {"steps": 1, "spacing": "linspace", "guidance": manifest.defaults.guidance}
        sampler.sample(max_batch, seed=0, **shortest, **examples)
    except EngineError as error:
        raise BackendError(f"warm-up: {error}") from error


def measure(sampler: Sampler, sizes: range, log: Log) -> None:
    """Measure the runs of batches of these sizes, so that no request with a budget has to wait for that."""
    manifest = sampler.bundle.manifest
    examples, began = example_inputs(manifest), perf_counter()
    if examples is None:
        return  # the warm-up has said why
    for n in sizes:
        sampler.sample(n, seed=0, budget_ms=FOREVER, **examples)
    took = perf_counter() - began
    log(f"{manifest.name}: measured batches of {sizes[0]} .. {sizes[-1]} for budgets in {took:.1f} s")
