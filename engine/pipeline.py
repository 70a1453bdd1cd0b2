"""The pipeline at work: a checked request through the chain of a backend, in chunks, to a batch.

    inputs -> before -> rows and steps of the table -> after -> pixels

Which graphs those are is in the manifest (engine/bundle/pipeline.py), how they run is the chain's business
(engine/backends/). A large request runs in chunks of `max_batch`: every sample has its own seed, so the result is the same
and memory stays bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import checks, memory
from engine.backends.base import Backend, Chain, DeviceChain
from engine.backends.host import HostChain
from engine.backends.tiles import Tiles
from engine.backends.workspace import FOLD_LIMIT
from engine.bundle.directions import Directions, read_directions
from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import IMAGE, X
from engine.bundle.prior import Prior, read_prior
from engine.bundle.reader import Bundle
from engine.cleanup import run_all, undo
from engine.device.arrays import DeviceBatch
from engine.errors import ArgumentError
from engine.request import Outcome, Request, Watch, cancelled
from engine.result import F32, Batch, Setting, Timings
from engine.solver import noise as noises
from engine.solver.regulariser import OFF
from engine.solver.table import Schedule, StepTable, build_step_table
from engine.text import TextEncoder

Seeds = npt.NDArray[np.uint64]
Arrays = dict[str, npt.NDArray[Any]]


def table_of(manifest: Manifest, schedule: Schedule, setting: Setting) -> StepTable:
    """The rows of a setting for a bundle; `schedule` is `manifest.schedule.schedule()`, kept where tables are made often."""
    state = manifest.pipeline.state
    return build_step_table(
        schedule,
        prediction=manifest.prediction,
        centred=state.centre is not None,
        steps=setting.steps,
        timesteps=setting.timesteps,
        spacing=setting.spacing,
        rho=setting.rho,
        method=setting.method,
        eta=setting.eta,
        variance=setting.variance,
        t_start=setting.t_start,
        temperature=setting.temperature,
        noise_scale=setting.noise_scale,
        eps_scale=setting.eps_scale,
        clip=state.clip if setting.clip else None,
        guidance=setting.guidance,
        guidance_interval=setting.guidance_interval,
        guide_scale=setting.guide_scale,
        guide_interval=setting.guide_interval,
        regularise=setting.regularise,
        regularise_interval=setting.regularise_interval,
        regulariser=None if manifest.pipeline.regulariser is None else manifest.pipeline.regulariser.prediction,
    )


class Pipeline:
    """One bundle on one backend. Not safe for two threads: the Sampler sees to that."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        max_batch: int,
        prior: Prior | None,
        directions: Directions | None,
        text: TextEncoder | None,
    ) -> None:
        self.backend, self.prior, self.directions, self.text = backend, prior, directions, text
        self.bundle = bundle
        self.manifest = self.bundle.manifest
        self.spec = self.manifest.pipeline
        self.schedule = self.manifest.schedule.schedule()
        self.chains: dict[tuple[Hashable, ...], tuple[Setting, StepTable]] = {}  # of the last requests, see `chain_of`
        # What the manifest says, once and not at every request.
        drawn, inputs = self.manifest.drawn, self.manifest.inputs
        self.free_inputs = tuple(spec for spec in inputs if any(isinstance(d, str) for d in spec.sample))
        self._drawn = None if drawn is None else (drawn.name, tuple(int(d) for d in drawn.sample))
        self._state_shape, self._image_shape = self.spec.state.shape, self.spec.image_shape
        self._needed: dict[tuple[frozenset[str], bool], tuple[InputSpec, ...]] = {}
        self._ran = False
        with undo(backend.close):
            # The calls around the loop of verbs without a chain (encode, decode) run on the host on every backend.
            self._tiles = None if bundle.tiling is None else Tiles(backend, bundle.tiling)
            self._host = HostChain(backend, self.spec, self._tiles)
            self.chain: Chain = backend.chain() if self._tiles is None else self._host
            self.max_batch = min(max_batch, self.chain.limit(lanes=1))

    @classmethod
    def open(cls, bundle: Bundle, backend: Backend, max_batch: int) -> Pipeline:
        """A pipeline with everything loaded that a sample needs; graphs of `encode` wait for the first image.

        bundle: that of the backend, or the same of a larger size.
        """
        with undo(backend.close):
            fitted, text = (read_prior(bundle), read_directions(bundle)), TextEncoder.of(bundle)
            spec = bundle.manifest.pipeline
            guide = bundle.manifest.guide
            guides = spec.guide_calls if guide is not None and guide.scale and backend.GUIDES else ()
            regularise = bundle.manifest.regularise
            asked = regularise is not None and regularise.mode != OFF and backend.REGULARISES
            second = spec.regulariser_calls if asked else ()
            for name in dict.fromkeys(call.graph for call in (*spec.run_calls, *guides, *second)):
                backend.graph(name)
        return cls(bundle, backend, max_batch, *fitted, text)

    def clone(self, bundle: Bundle | None = None) -> Pipeline:
        """Another over the same weights, with states and buffers of its own; for another size where a bundle is given."""
        kept, bundle = (self.prior, self.directions, self.text), bundle or self.bundle
        return Pipeline(bundle, self.backend.clone(bundle.of_graphs), self.max_batch, *kept)

    def close(self) -> None:
        """Free graphs and buffers."""
        run_all([self.chain.close, self._host.close, self.backend.close])

    # ---- parts that are of use by themselves -------------------------------------------------------------------------

    def table(self, setting: Setting, *, noised_image: bool = False) -> StepTable:
        """The rows of `setting`; with `noised_image` and no t_start, from the image noised to the first of the listed
        timesteps, or to T - 1."""
        table = table_of(self.manifest, self.schedule, setting)
        if not noised_image or setting.t_start is not None:
            return table
        # q(x_T-1 | image) = N(sqrt(alpha_bar) * image, 1 - alpha_bar): what the reference encodes images to.
        alpha_bar = float(self.schedule.alpha_bar[setting.timesteps[0] if setting.timesteps else -1])
        noise_scale = setting.temperature * math.sqrt(1 - alpha_bar)
        return replace(table, start=replace(table.start, k_start=math.sqrt(alpha_bar), k_noise=noise_scale))

    def needed(self, given: Iterable[str], *, guided: bool = False) -> tuple[InputSpec, ...]:
        """The inputs that a run needs where these values are given; guided: whether guides run."""
        key, where = frozenset(given), (frozenset(given), guided)
        if where not in self._needed:
            names = self.spec.inputs_for(self.spec.run_values(guided=guided), key)
            self._needed[where] = tuple(spec for spec in self.manifest.inputs if spec.name in names)
        return self._needed[where]

    def draw(self, seeds: Seeds, prior: str | None) -> Arrays:
        """The drawn input of each seed, {name: float32 [N, ...]}: from the bundle's prior when that is what `prior` names,
        else from N(0, I); empty where no input is drawn."""
        if self._drawn is None:
            return {}
        name, shape = self._drawn
        if self.prior is not None and prior == "bundle":
            return {name: self.prior.draw(seeds).reshape(len(seeds), *shape)}
        return {name: noises.drawn(seeds, shape)}

    def draw_fresh(self, seeds: Seeds, rows: int) -> Arrays:
        """The input that is drawn anew for every row, {name: float32 [N, rows, ...]}; empty where there is none."""
        spec = self.manifest.fresh
        return {} if spec is None else {spec.name: noises.fresh(seeds, rows, tuple(int(d) for d in spec.sample[1:]))}

    def encode(self, pixels: F32) -> Arrays:
        """Images [N, C, H, W] in [0, 1] through `encode`: its values by name."""
        calls, taken = self.spec.encode, self.spec.encoder_image
        unsigned = taken is not None and taken.range == (0.0, 1.0)
        parts: list[Arrays] = []
        for begin in range(0, len(pixels), self.max_batch):
            image = pixels[begin : begin + self.max_batch]
            values: Arrays = {IMAGE: image if unsigned else 2 * image - 1}
            for call in calls:
                values.update(self._host.call(call, values))
            parts.append(values)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != IMAGE}

    def autoencode(self, pixels: F32) -> Batch:
        """Images [N, C, H, W] in [0, 1] through `encode` and `after` alone: a batch of no steps, whose seeds are 0."""
        timings, begun = Timings(), perf_counter()
        x = self.encode(pixels)[X]
        starts = range(0, len(x), self.max_batch)
        images = np.concatenate([self._host.pixels({}, x[begin : begin + self.max_batch]) for begin in starts])
        timings.chunks = len(starts)
        timings.book("total_ms", begun)
        seeds, timesteps = np.zeros(len(x), np.uint64), np.zeros(0, np.int64)
        return Batch(images, x, {}, seeds=seeds, timesteps=timesteps, setting=Setting(steps=0), timings=timings)

    def decode(self, inputs: Mapping[str, npt.NDArray[Any]]) -> F32:
        """The start value that `before` makes of inputs, float32 [N, C, H, W]."""
        n = len(next(iter(inputs.values())))
        parts = []
        for begin in range(0, n, self.max_batch):
            values: Arrays = {name: array[begin : begin + self.max_batch] for name, array in inputs.items()}
            self._host.before(values)
            parts.append(values[str(self.spec.state.start)].copy())
        return np.concatenate(parts)

    # ---- a run -------------------------------------------------------------------------------------------------------

    def run(self, request: Request, progress: bool = False) -> Batch:
        """Run a whole request and return a batch that shares no memory with the pipeline."""
        timings, rows, n = Timings(), len(request.table.rows), len(request.seeds)
        if request.noise is not None:
            checks.check_noise_steps(request.noise, rows)
        # Step by step on the host where something is blended in or quantised: no backend does that inside a loop of its own.
        chain: Chain = self._host if request.blend is not None or request.setting.quantize_denoised else self.chain
        if request.blend is not None and request.blend.noise is not None:
            checks.check_noise_steps(request.blend.noise, rows, "known_noise")
        size = min(self.max_batch, self.chain.limit(request.lanes))
        starts = range(0, n, size)
        self._check_room(request, min(n, size))
        bar = self._progress(request, starts, size) if progress else None  # importing tqdm is not part of the run
        begun = perf_counter()
        try:
            batch = self._room(request, timings)
            watched = request
            if self._tiles is not None:
                self._tiles.after = self._between(request, bar)
            elif bar is not None:
                watched = replace(request, watch=_watch(request.watch, bar.update))
            for begin in starts:
                part = watched.part(begin, begin + size)
                outcome = chain.run(part, timings)
                now = perf_counter()
                _keep(batch, slice(begin, begin + size), outcome)
                timings.book("post_ms", now)
                timings.chunks += 1
        finally:
            if self._tiles is not None:
                self._tiles.after = None
            if bar is not None:
                bar.close()
        timings.book("total_ms", begun)
        self._ran = True
        return batch

    def _progress(self, request: Request, starts: range, size: int) -> Any:
        """A bar that counts steps or, on a canvas, windows: of the network in every step, and of calls around the loop."""
        if self._tiles is None:
            return _bar(len(request.table) * len(starts), "step")
        evaluations = sum(request.lanes if min(size, len(request) - begin) > FOLD_LIMIT else 1 for begin in starts)
        canvas, around = self._tiles.canvas, (*self.spec.before, *self.spec.after)
        calls = len(request.table) * evaluations + len(starts) * sum(bool(canvas.ports[call.graph]) for call in around)
        return _bar(calls * len(canvas.windows), "tile")

    def _check_room(self, request: Request, at_once: int) -> None:
        """HostMemoryError, before anything runs, for a canvas that does not fit the free memory."""
        if self.bundle.canvas is None or self.bundle.canvas.block is None:
            return
        # What a network has touched in an earlier run is no longer free.
        networks = 0 if self._tiles is not None or self._ran else self.backend.working_bytes(request.lanes * at_once)
        memory.check_room(self.spec, request.lanes, at_once, len(request), networks, tiled=self._tiles is not None)

    def _between(self, request: Request, bar: Any) -> Callable[[int], None]:
        """What is done after some windows of a canvas, of which a single step may have very many."""

        def after(windows: int) -> None:
            if bar is not None:
                bar.update(windows)
            if request.stop is not None and request.stop():
                raise cancelled("stop", request.table, self._host.done)

        return after

    def run_on_device(self, request: Request, chain: DeviceChain) -> DeviceBatch:
        """Run a whole request and leave the results on the device."""
        timings, begun = Timings(), perf_counter()
        if self._tiles is not None:
            raise ArgumentError(
                "found a sampler of another size than the bundle's, whose tiles are cut on the host; expected the bundle's "
                "own size for results on a device. Leave size out, or call sample."
            )
        if request.setting.quantize_denoised:
            raise ArgumentError(
                "quantize_denoised is given, which runs step by step on the host; expected none for results on a device. "
                "Leave it out, or call sample."
            )
        if request.noise is not None:
            checks.check_noise_steps(request.noise, len(request.table))
        n, size = len(request), min(self.max_batch, chain.limit(request.lanes))
        results = chain.results(request)
        for begin in range(0, n, size):
            part = request.part(begin, begin + size)
            chain.run_into(part, timings, {name: array[begin : begin + size] for name, array in results.items()})
            timings.chunks += 1
        timings.book("total_ms", begun)
        return DeviceBatch(
            images=results.pop("images"),
            x=results.pop("x"),
            values=results,
            seeds=request.seeds.copy(),
            timesteps=np.array(request.table.timesteps, np.int64),
            setting=request.setting,
            timings=timings,
            start_name=self.spec.state.start,
        )

    def _room(self, request: Request, timings: Timings) -> Batch:
        n, (channels, height, width) = len(request.seeds), self._image_shape
        values: Arrays = {name: np.empty((n, *array.shape[1:]), array.dtype) for name, array in request.inputs.items()}
        start = self.spec.state.start
        if start is not None and start not in values:
            values[start] = np.empty((n, *self._state_shape), np.float32)
        return Batch(
            images=np.empty((n, height, width, channels), np.uint8),
            x=np.empty((n, *self._state_shape), np.float32),
            values=values,
            seeds=request.seeds.copy(),
            timesteps=request.table.timesteps.copy(),
            setting=request.setting,
            timings=timings,
            start_name=start,
        )


def _keep(batch: Batch, where: slice, outcome: Outcome) -> None:
    """Copy finished samples into the batch."""
    batch.images[where] = outcome.images
    batch.x[where] = outcome.x
    for name, array in batch.values.items():
        array[where] = outcome.values[name]


def _watch(callback: Watch | None, tick: Callable[[], Any]) -> Watch:
    """One watcher for the chain: moves the progress bar, then asks the caller's callback."""

    def watch(info: Any) -> object:
        tick()
        return callback(info) if callback is not None else None

    return watch


def _bar(total: int, unit: str) -> Any:
    """A bar on stderr that shows itself after two seconds."""
    from tqdm import tqdm

    return tqdm(total=total, delay=2, unit=unit, leave=False)
