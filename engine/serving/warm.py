"""What a server does before its first request: try the network at batch 1 and at the largest, and time it for budgets."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from time import perf_counter
from typing import Any

from engine.bundle.examples import example_inputs, examples_of
from engine.cascade import Cascade
from engine.errors import BackendError, EngineError
from engine.sampler import Sampler
from engine.serving.groups import Log
from engine.sizes import Size
from engine.stages import recorded_setting


def warm_up(sampler: Sampler | Cascade, max_batch: int, log: Log, largest: Size = None) -> None:
    """One image as clients get it who ask for nothing special, and one step of the largest batch: is there room for it?
    And of the largest size, where clients may ask for others.

    config.pbtxt's model_warmup does the same through the server, but must not be the first to fail: Triton 2.51 can crash
    while it takes such a model down (a model with dynamic batching, five of seven times).
    """
    manifest = sampler.bundle.manifest
    examples = examples_of(sampler.inputs)
    if examples is None:
        log(f"{manifest.name}: no warm-up: an input must be given whose size each request decides")
        return
    try:
        sampler.sample(1, seed=0, **examples)
        shortest = _one_step(manifest.defaults.guidance)
        if isinstance(sampler, Cascade):
            stages = [one.bundle.manifest for one in sampler.samplers]
            settings = [recorded_setting(*both) for both in pairwise(stages)]
            shortest["stages"] = [{**_one_step(found.guidance), "t_start": found.t_start} for found in settings]
        sampler.sample(max_batch, seed=0, **shortest, **examples)
        if isinstance(sampler, Sampler) and largest is not None:
            sampler.warmup(size=largest)
    except EngineError as error:
        raise BackendError(f"warm-up: {error}") from error


def _one_step(guidance: float) -> dict[str, Any]:
    """Options of a run of one step, on the lanes of the recorded setting."""
    return {"steps": 1, "spacing": "linspace", "guidance": guidance}


class Measuring:
    """Measures batches of these sizes, a run at a time, so that no request with a budget has to wait for that."""

    def __init__(self, sampler: Sampler, sizes: range, log: Log) -> None:
        self.sampler, self.log, self.examples = sampler, log, example_inputs(sampler.bundle.manifest)
        # Without examples there is nothing to run: the warm-up has said why.
        self.sizes, self.left = sizes, deque(sizes if self.examples is not None else ())
        self.took_s = 0.0

    def __bool__(self) -> bool:
        """Whether anything is left to measure."""
        return bool(self.left)

    def step(self) -> None:
        """One run; says so after the last."""
        began = perf_counter()
        if not self.sampler.probe(self.left[0], seed=0, **(self.examples or {})):
            self.left.popleft()
        self.took_s += perf_counter() - began
        if not self.left:
            sizes = f"{self.sizes[0]} .. {self.sizes[-1]}"
            self.log(f"{self.sampler.bundle.manifest.name}: measured batches of {sizes} for budgets in {self.took_s:.1f} s")
