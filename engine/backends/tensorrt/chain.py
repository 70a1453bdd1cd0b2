"""How does a whole chunk run on a GPU? The loop of engine/chain.py, put into a stream, or replayed as one captured graph.

A shape's first run is put into the stream call by call, then captured; from the second on the host makes one launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from engine.backends.tensorrt.kernels import BAD_WORD, GpuKernels, control_block
from engine.backends.tensorrt.plan import Plan
from engine.backends.tensorrt.shape import STAGES, Prepared, draws_z, pixels, shape_of
from engine.bundle.reader import Bundle
from engine.chunk import Chunk, Outcome
from engine.cleanup import noting, undo
from engine.device.arrays import Allocation, DeviceArray, borrow
from engine.device.context import Device, release_all
from engine.device.memory import DeviceBlock
from engine.device.stream import Lru, Stream, capture
from engine.errors import BackendError, Cancelled, CaptureError, NumericsError
from engine.kernels import STREAM_Z, cuda_module
from engine.result import StepInfo, Timings

KEPT_SHAPES = 4  # each with its buffers, contexts and graph: enough for a server's few, bounded over any number


class GpuChain:
    """Runs chunks over the plans of one bundle on one device (a ChunkEngine, engine/chunk.py).

    One activation memory serves all plans of all shapes: on one stream no two of them run at once.
    """

    def __init__(self, bundle: Bundle, plans: Mapping[str, Plan], device: Device) -> None:
        self.model = bundle.manifest.model
        self.plans = plans
        self.device = device.share()
        self._count = self.model.channels * self.model.image_size**2
        self._shapes: Lru[Prepared] = Lru(KEPT_SHAPES)
        self.captures = True  # False: call by call always, which only a measurement wants
        self._owned: list[Any] = []
        with undo(self.close), device.current():
            self.stream = self._own(Stream(device))
            self.kernels = self._own(GpuKernels(device))
            scratch = {"scratch": ((max(plan.scratch for plan in plans.values()),), np.uint8)}
            self._scratch = self._own(DeviceBlock(device, scratch, "activations", self.stream.handle))

    def limit(self, guided: bool) -> int:
        """The most samples that a chunk may have: with guidance every sample is evaluated twice in one batch."""
        plan = self.plans["denoiser"]
        if guided:
            plan.check_shape("x", (max(2, plan.batches("x")[0]), *plan.ranges["x"].largest[1:]))
        lanes = plan.batches("x")[1]
        if self.model.z_conditioned:
            lanes = min(lanes, self.plans["timestep_table"].batches("z")[1])
        samples = lanes // 2 if guided else lanes
        return min(samples, self.plans["vae_decoder"].batches("z")[1]) if self.model.conditional else samples

    def run(self, chunk: Chunk, timings: Timings) -> Outcome:
        """Run a chunk; the results are in pinned memory until the next one."""
        with self._running(chunk) as prepared:
            self._run(prepared, chunk, timings)
            down = prepared.down
            for name in down.slots:
                if name not in ("control", "x0"):
                    self._download(prepared, name)
            self._finish(prepared, chunk, timings)
            found = {name: down.array(name) if name in down else None for name in ("images", "recon", "x", "z")}
        return Outcome(**found)  # type: ignore[arg-type]  # images and x are always there

    def results(self, n: int, *, recon: bool, z: bool) -> dict[str, Any]:
        """Room on the device for the results of n samples, which the caller owns."""
        model = self.model
        specs = pixels(model, n, recon=recon)
        specs["x"] = ((n, model.channels, model.image_size, model.image_size), np.float32)
        if z:
            specs["z"] = ((n, model.z_dim or 0), np.float32)
        with self.device.current():
            allocation = Allocation(self.device, specs, self.stream.handle)
        return {name: allocation.array(name) for name in specs}

    def run_into(self, chunk: Chunk, timings: Timings, into: dict[str, Any]) -> None:
        """Run a chunk and leave the results in `into`, complete when this returns."""
        with self._running(chunk) as prepared:
            self._run(prepared, chunk, timings)
            for name, array in into.items():
                source = prepared.address(name)
                self.device("cuMemcpyDtoDAsync", array.address, source, array.nbytes, self.stream.handle)
            self._finish(prepared, chunk, timings)

    def borrow(self, value: Any, name: str) -> DeviceArray:
        """A caller's device array; this engine's stream waits until it has been written."""
        with self.device.current():
            return borrow(value, name, self.device, self.stream)

    def wait_for(self, stream: int) -> None:
        """Start nothing before what was enqueued in `stream` until now is done."""
        with self.device.current():
            self.stream.wait_for(stream)

    def close(self) -> None:
        """Give everything back, the device last."""
        owned, self._owned = self._owned, []
        if self.device is None:
            return
        device, self.device = self.device, None  # type: ignore[assignment]  # closed
        try:
            if device.driver.lost is None:
                with device.current():
                    closing = [item.close for item in reversed(owned)]
                    release_all(device, [lambda: self._shapes.close(device), *closing])
        finally:
            device.release()

    # ---- a run -----------------------------------------------------------------------------------

    @contextmanager
    def _running(self, chunk: Chunk) -> Iterator[Prepared]:
        """The prepared shape of a chunk, with the context current. After a failure nothing is left running."""
        with self.device.current():
            shape = shape_of(chunk)
            prepared = self._shapes.get(
                shape, lambda: Prepared(self.model, shape, self.plans, self.stream, self._scratch.address)
            )
            try:
                yield prepared
            except (NumericsError, Cancelled):
                raise  # the device did all that it was asked to
            except BaseException as error:
                self._settle(error)
                # What failed half-way is made anew by the next run.
                with noting(error):
                    self._shapes.drop(shape)
                raise

    def _settle(self, error: BaseException) -> None:
        """Wait for what is still running: it writes into memory that is about to be given back."""
        with noting(error):
            self.stream.synchronize()

    def _run(self, prepared: Prepared, chunk: Chunk, timings: Timings) -> None:
        self._upload(prepared, chunk)
        timings.network_calls += prepared.shape.steps
        if chunk.watch is not None:
            timings.launch = "plain"
            self._watched(prepared, chunk)
        elif self.captures and prepared.replay is not None:
            timings.launch = "graph"
            prepared.replay.launch(self.stream)
        else:
            timings.launch = f"plain: {prepared.refused}" if prepared.refused else "plain"
            self._enqueue(prepared)

    def _finish(self, prepared: Prepared, chunk: Chunk, timings: Timings) -> None:
        """Wait for the end, read the NaN guard and the times, and capture what is not captured yet."""
        self._download(prepared, "control")
        self.stream.synchronize()
        self._guard(prepared, chunk)
        self._book(prepared, timings)
        if self.captures and chunk.watch is None and prepared.replay is None and prepared.refused is None:
            self._capture(prepared)

    def _upload(self, prepared: Prepared, chunk: Chunk) -> None:
        """Everything that this run does not share with others of its shape: one copy from pinned memory."""
        table, up = chunk.table, prepared.up
        given = {
            "control": control_block(table.steps, chunk.guidance, table.start),
            "rows": table.rows,
            "timesteps": table.timesteps,
            "seeds": chunk.seeds,
            **{name: getattr(chunk, name) for name in ("z", "x_T", "noise", "image", "cond") if name in up},
        }
        there = {name: value for name, value in given.items() if isinstance(value, DeviceArray)}
        for name in given.keys() - there.keys():
            up.array(name)[: len(given[name])] = given[name]
        stream = self.stream.handle
        self.device("cuMemcpyHtoDAsync", prepared.arena.address, up.address, up.nbytes, stream)
        for name, array in there.items():
            self.device("cuMemcpyDtoDAsync", prepared.address(name), array.address, array.nbytes, stream)

    def _download(self, prepared: Prepared, name: str) -> None:
        slot = prepared.down[name]
        self.device("cuMemcpyDtoHAsync", slot.address, prepared.address(name), slot.nbytes, self.stream.handle)

    def _capture(self, prepared: Prepared) -> None:
        """Capture the chain for the next run of this shape, or note why that cannot be."""
        reluctant = [role for role, run in prepared.runs.items() if not run.capturable(self.stream.handle)]
        if reluctant:
            prepared.refused = f"{self.plans[reluctant[0]].backend} does not allow capture of {', '.join(reluctant)}"
            return
        try:
            prepared.replay = capture(self.stream, lambda: self._enqueue(prepared, capturing=True))
        except CaptureError as error:
            prepared.refused = str(error)

    # ---- the chain -------------------------------------------------------------------------------

    def _enqueue(self, prepared: Prepared, *, capturing: bool = False) -> None:
        """Decoder, table, start, S times (denoiser, update), pixels: into the stream, or into a graph."""

        def mark(name: str | int) -> None:
            prepared.events[name].record(self.stream.handle, capturing=capturing)

        self._begin(prepared, mark)
        for step in range(prepared.shape.steps):
            self._step(prepared)
            mark(step)
        self._pixels(prepared)
        mark("post")

    def _begin(self, prepared: Prepared, mark: Any) -> None:
        """z ~ N(0, I); cond = 2 decoder(z) - 1; the timestep table; x from x_T, image and cond."""
        shape, runs, at, launch = prepared.shape, prepared.runs, prepared.address, self._launch
        n, count = shape.n, self._count
        mark("begin")
        if draws_z(self.model, shape):
            z_dim = self.model.z_dim or 0
            launch("dv_normal", (z_dim, n), at("seeds"), STREAM_Z, 0, 1, n, z_dim, at("z"))
        mark("noise")
        if "vae_decoder" in runs:
            runs["vae_decoder"].enqueue(self.stream.handle)
            launch("dv_cond", (n * count, 1), at("control"), at("cond"), at("cond"), n * count)
        mark("vae")
        runs["timestep_table"].enqueue(self.stream.handle)
        mark("table")
        image = at("image") if shape.image_given else at("cond")
        launch(
            "dv_start", (count, n), at("control"), at("seeds"), at("x_T"), count if shape.x_T == n else 0, image, at("cond"),
            at("x"), self._copy_of_x(prepared), at("table"), at("row"), self._width(prepared), n, count,
        )  # fmt: skip
        mark("start")

    def _step(self, prepared: Prepared) -> None:
        """eps = eps_theta(x_t, t, cond);  x_{t-1} from x_t and eps (kernels/cuda/README.md has the arguments)."""
        shape, at = prepared.shape, prepared.address
        n, count = shape.n, self._count
        each = shape.noise == n
        prepared.runs["denoiser"].enqueue(self.stream.handle)
        self._launch(
            "dv_update_f32", (count, n), at("control"), at("rows"), at("seeds"),
            at("noise"), count * shape.noise, count if each else 0,
            at("eps"), prepared.arena["eps"].at(n) if shape.guided else 0, at("cond"),
            at("x"), self._copy_of_x(prepared), at("x0"),
            at("table"), at("row"), self._width(prepared), n, count,
        )  # fmt: skip

    def _pixels(self, prepared: Prepared) -> None:
        n, channels, area = prepared.shape.n, self.model.channels, self.model.image_size**2
        for source, name in (("x", "images"), ("cond", "recon")):
            if name in prepared.arena:
                self._launch("dv_to_uint8", (area, n), prepared.address(source), prepared.address(name), n, channels, area)

    def _watched(self, prepared: Prepared, chunk: Chunk) -> None:
        """The same, with a look at the host after every step."""
        self._begin(prepared, lambda name: prepared.events[name].record(self.stream.handle))
        for i, t in enumerate(chunk.table.timesteps):
            self._step(prepared)
            prepared.events[i].record(self.stream.handle)
            for name in ("control", "x", "x0"):
                self._download(prepared, name)
            self.stream.synchronize()
            self._guard(prepared, chunk)
            self._report(prepared, chunk, i, int(t))
        self._pixels(prepared)
        prepared.events["post"].record(self.stream.handle)

    def _launch(self, name: str, size: tuple[int, int], *words: int) -> None:
        self.kernels.launch(name, self.stream.handle, cuda_module.launch_grid(*size), *words)

    def _copy_of_x(self, prepared: Prepared) -> int:
        """With guidance the denoiser's batch holds x twice: where the second one begins."""
        return prepared.arena["x"].at(prepared.shape.n) if prepared.shape.guided else 0

    def _width(self, prepared: Prepared) -> int:
        """Elements of one step's rows, all lanes together."""
        return prepared.arena["row"].size

    # ---- what a run tells ------------------------------------------------------------------------

    def _report(self, prepared: Prepared, chunk: Chunk, i: int, t: int) -> None:
        views = prepared.down.array("x"), prepared.down.array("x0")
        for view in views:
            view.flags.writeable = False
        steps = prepared.shape.steps
        if chunk.watch is not None and chunk.watch(StepInfo(i, steps, t, *views, first=chunk.first)):
            raise Cancelled(
                f"The callback stopped the run after step {i + 1} of {steps} (timestep {t}). "
                f"No batch was made; the sampler is ready for the next call."
            )

    def _guard(self, prepared: Prepared, chunk: Chunk) -> None:
        """NumericsError with graph and step when the device met NaN or infinity."""
        bad = int(prepared.down.array("control")[BAD_WORD])
        if bad == 0:
            return
        if bad == cuda_module.BAD_OVERRUN:
            raise BackendError(
                f"{chunk.where}: found more updates than the {prepared.shape.steps} steps of the chain, expected one a "
                f"step; the device's memory was overwritten by somebody: run the process under compute-sanitizer"
            )
        steps = prepared.shape.steps
        where = {cuda_module.BAD_IMAGE: "vae_decoder", cuda_module.BAD_TABLE: "timestep_table"}
        when = "before the first step"
        if bad <= steps:
            when = f"at step {bad} of {steps} (timestep {chunk.table.timesteps[bad - 1]})"
        raise NumericsError(
            f"The graph {where.get(bad, 'denoiser')!r} ({chunk.where}) returned NaN or infinity {when}; every value was "
            f"expected to be finite. Open the bundle on a float32 backend (backend='openvino', precision='f32'); if it "
            f"persists, check the z, x_T and noise you passed, and build the bundle again from its checkpoint."
        )

    def _book(self, prepared: Prepared, timings: Timings) -> None:
        """Add the device's times between the events to `timings`."""
        events = prepared.events
        ends = dict(zip(STAGES[1:-1], ("noise_ms", "vae_ms", "table_ms", "update_ms"), strict=True))
        earlier = events["begin"]
        for name, event in events.items():
            if name in ends:
                setattr(timings, ends[str(name)], getattr(timings, ends[str(name)]) + event.since(earlier))
                earlier = event
        for step in range(prepared.shape.steps):
            timings.add_step(step, events[step].since(earlier))
            earlier = events[step]
        timings.post_ms += events["post"].since(earlier)

    def _own(self, item: Any) -> Any:
        self._owned.append(item)
        return item
