"""The calls of a chain in their order: into a stream, where they run, or into a graph that is being captured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.backends.tensorrt.kernels import GpuKernels
from engine.backends.tensorrt.prepared import Guarded, Prepared
from engine.device.stream import Stream
from engine.kernels import cuda_module


@dataclass(frozen=True)
class Enqueued:
    """Puts a prepared chain into a stream: begin, each row, end."""

    prepared: Prepared
    kernels: GpuKernels
    stream: Stream
    capturing: bool = False

    def all(self) -> None:
        """The whole chain."""
        self.begin()
        for i in range(self.prepared.shape.rows):
            self.row(i)
        self.end()

    def begin(self) -> None:
        """before; the embeddings of all rows; x = k_noise x_T + k_start start + k_centre centre."""
        p, at, value = self.prepared, self.prepared.address, self.prepared.value
        self._mark("begin")
        for call in p.before:
            self._outside(call)
        for call in p.nulls:
            self._outside(call)
        for target, source, nbytes in p.lane_copies:
            p.device("cuMemcpyDtoDAsync", target, source, nbytes, self.stream.handle)
        self._mark("before")
        p.rows.enqueue(self.stream.handle)
        self._mark("rows")
        n, count, state = p.shape.n, self._count, p.wiring.pipeline.state
        start = at("start") if p.shape.start else value(state.start)
        self._launch(
            "dv_start", (count, n), at("control"), at("coefficients"), at("seeds"),
            at("x_T"), count if p.shape.x_T == n else 0, start, value(state.centre),
            at("x"), *p.copies, at("rows"), at("row"), p.row_width, n, count,
        )  # fmt: skip
        self._mark("start")

    def row(self, i: int) -> None:
        """e of every lane with a weight;  x' and the rest of the row (kernels/cuda/README.md has the arguments)."""
        p, at = self.prepared, self.prepared.address
        n, count, shape = p.shape.n, self._count, p.shape
        p.steps[shape.active[i]].enqueue(self.stream.handle)
        words = [
            at("control"), at("coefficients"), at("weights"), shape.lanes, at("seeds"),
            at("noise"), count * shape.noise, count if shape.noise == n else 0,
            at("e"), p.value(p.wiring.pipeline.state.centre), at("x"), *p.copies, at("x0"), at("h"),
            at("rows"), at("row"), p.row_width, n, count,
        ]  # fmt: skip
        if shape.full:
            self._launch("dv_update_full", (count, n), *words, at("y"), 0, at("v"))
        else:
            self._launch("dv_update_plain", (count, n), *words)
        self._mark(i)

    def end(self) -> None:
        """after, and pixels."""
        p = self.prepared
        for call in p.after:
            self._outside(call)
        self._mark("after")
        spec = p.wiring.pipeline
        channels, height, width = spec.image_shape
        n, area = p.shape.n, height * width
        self._launch("dv_to_uint8", (area, n), p.value(spec.image), p.address("images"), n, channels, area)
        self._mark("post")

    @property
    def _count(self) -> int:
        return math.prod(self.prepared.wiring.pipeline.state.shape)

    def _outside(self, call: Guarded) -> None:
        """A call outside the loop, and the guard over what it made."""
        call.run.enqueue(self.stream.handle)
        for address, total in call.made:
            code = cuda_module.BAD_CALL + call.number
            self._launch("dv_finite", (total, 1), self.prepared.address("control"), address, total, code)

    def _launch(self, name: str, size: tuple[int, int], *words: int) -> None:
        self.kernels.launch(name, self.stream.handle, cuda_module.launch_grid(*size), *words)

    def _mark(self, name: str | int) -> None:
        self.prepared.events[name].record(self.stream.handle, capturing=self.capturing)
