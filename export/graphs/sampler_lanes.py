"""Lanes in the whole-sampler graph: every value beside its null, as often as `weights` has columns (one or two)."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from engine.bundle.pipeline import CallSpec, PipelineSpec
from export.graphs.sheet import Sheet

LANES = 2


class Lanes:
    """Makes what the lanes of a pipeline are bound to, in the main graph before the loop.

    lanes/count [1] is their number, lanes/1x4 the shape that repeats a state over them.
    """

    def __init__(self, main: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto]) -> None:
        self.main, self.pipeline, self.parts = main, pipeline, parts
        self._made: dict[str, str] = {}
        if pipeline.guided:
            main.op("Shape", "weights", out="lanes/count", start=1, end=2)
            self._repeated(4)

    def stacked(self, name: str) -> str:
        """A value in every lane, [lanes * N, ...]: itself, then its null."""
        if not self.pipeline.guided:
            return name
        key = f"lanes/{name}"
        if key not in self._made:
            self._made[key] = self._stack(name, key)
        return self._made[key]

    def _stack(self, name: str, key: str) -> str:
        main, sample = self.main, self.pipeline.values[name].shape[1:]
        own = main.op("Unsqueeze", name, main.axes(0), out=f"{key}/own")
        if self.pipeline.has_null(name):
            null = main.op("Expand", self._null(name), self._shape(name), out=f"{key}/null")
            other = main.op("Unsqueeze", null, main.axes(0), out=f"{key}/other")
            both = main.op("Concat", own, *[other] * (LANES - 1), out=f"{key}/both", axis=0)
            stack = main.op("Slice", both, main.axes(0), "lanes/count", main.axes(0), out=f"{key}/stack")
        else:
            stack = main.op("Expand", own, self._repeated(len(sample) + 1), out=f"{key}/stack")
        return main.op("Reshape", stack, self._flat(name), out=key)

    def _repeated(self, rank: int) -> str:
        """The shape that repeats an array of this rank over the lanes."""
        key = f"lanes/1x{rank}"
        if key not in self._made:
            self._made[key] = self.main.op("Concat", "lanes/count", self.main.axes(*[1] * rank), out=key, axis=0)
        return key

    def _shape(self, name: str) -> str:
        key = f"{name}/shape"
        if key not in self._made:
            self._made[key] = self.main.op("Shape", name, out=key)
        return key

    def _flat(self, name: str) -> str:
        """The shape [-1, one sample of a value]."""
        sample = self.pipeline.values[name].shape[1:]
        if all(isinstance(d, int) for d in sample):
            return self.main.axes(-1, *(int(d) for d in sample))
        return self.main.op("Concat", self.main.axes(-1), self._sample(name), out=f"lanes/{name}/flat", axis=0)

    def _sample(self, name: str) -> str:
        key = f"{name}/sample"
        if key not in self._made:
            self._made[key] = self.main.op("Shape", name, out=key, start=1)
        return key

    def _null(self, name: str) -> str:
        """What stands for a value in the null lane, and broadcasts to it: a constant, or what a call makes of nulls."""
        key = f"nulls/{name}"
        if key in self._made:
            return key
        if name in self.pipeline.nulls:
            null = self.pipeline.nulls[name]
            self._made[key] = self.main.constant(key, null, null.dtype)
            return key
        call = self.pipeline.maker(name)
        assert call is not None, "a null of its own or one that a call makes"
        self._run_on_nulls(call)
        return key

    def _run_on_nulls(self, call: CallSpec) -> None:
        """The call with its inputs at null: on one sample, unless some input has no null and is each sample's own."""
        main = self.main
        alone = all(self.pipeline.has_null(name) for name in call.inputs.values())
        taken = {}
        for port, name in call.inputs.items():
            if not self.pipeline.has_null(name):
                taken[port] = name
                continue
            shape = self._shape(name)
            if alone:
                shape = main.op("Concat", main.axes(1), self._sample(name), out=f"nulls/{name}/shape", axis=0)
            taken[port] = main.op("Expand", self._null(name), shape, out=f"nulls/{name}/taken")
        made = {port: f"nulls/{name}" for port, name in call.outputs.items()}
        self._made.update({name: name for name in made.values()})
        main.inline(self.parts[call.graph], call.graph, f"nulls/{call.graph}", {**taken, **made})
