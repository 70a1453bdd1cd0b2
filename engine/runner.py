"""How does one checked request run? Keeps graphs and buffers; takes a batch through VAE, table and chain.

A large request runs in chunks of `max_batch`: every sample has its own seed, so the result is the same and
memory stays bounded.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engine import backends, kernels
from engine import checks as arguments
from engine.backends import Graph
from engine.backends.base import Arrays
from engine.bundle.prior import LatentPrior, read_prior
from engine.bundle.reader import Bundle
from engine.chain import Chain, run_chain, start_state
from engine.chunk import Chunk, ChunkEngine, Outcome
from engine.device.arrays import DeviceBatch
from engine.device.context import run_all, undo
from engine.errors import NumericsError
from engine.network import Workspace
from engine.request import Request
from engine.result import F32, Batch, Setting, StepInfo, Timings
from engine.solver import noise as noises
from engine.solver.table import Schedule, StepTable, build_step_table

Callback = Callable[[StepInfo], object]

KEPT_SHAPES = 4  # buffers of so many batch shapes are kept: enough for a server's few, flat over any number


class Runner:
    """Graphs and buffers of one bundle on one backend. Not safe for two threads: the Sampler sees to that."""

    def __init__(
        self, bundle: Bundle, backend: str, precision: str, threads: int, max_batch: int, device: object = None
    ) -> None:
        self.bundle, self.backend, self.precision = bundle, backend, precision
        self.threads, self.max_batch = threads, max_batch
        self.model = bundle.manifest.model
        self.shape = (self.model.channels, self.model.image_size, self.model.image_size)
        spec = bundle.manifest.schedule
        self.schedule = Schedule(spec.beta_1, spec.beta_T, spec.T, spec.recipe)
        self._graphs: dict[str, Graph] = {}
        self._loading = threading.Lock()
        self._workspaces: OrderedDict[tuple[int, bool], Workspace] = OrderedDict()
        self._kept_rows: tuple[bytes, F32] | None = None
        self.prior: LatentPrior | None = None
        self.device = backends.open_device(backend, device)
        self.chunks: ChunkEngine | None = None  # what takes whole chunks, where the backend has such a thing

    def twin(self) -> Runner:
        """A runner over the same weights, loaded once for both, with states and buffers of its own."""
        other = Runner(self.bundle, self.backend, self.precision, self.threads, self.max_batch, self.device)
        other.prior = self.prior
        with undo(other.close):
            for role in self.bundle.manifest.roles:
                other._graphs[role] = self.graph(role).clone()
            other._open_chunks()
        return other

    def load(self) -> None:
        """Load what every sample needs; the encoder waits for the first image."""
        with undo(self.close):
            self.prior = read_prior(self.bundle)
            for role in self.bundle.manifest.roles:
                if role != "vae_encoder":
                    self.graph(role)
            self._open_chunks()

    def _open_chunks(self) -> None:
        self.chunks = backends.chunk_engine(self.backend, self.bundle, self._graphs)
        if self.chunks is not None:
            self.max_batch = min(self.max_batch, self.chunks.limit(guided=False))

    def close(self) -> None:
        """Free graphs and buffers."""
        closing = [graph.close for graph in self._graphs.values()]
        if self.chunks is not None:
            closing.insert(0, self.chunks.close)
        if self.device is not None:
            closing.append(self.device.release)
        self._graphs.clear()
        self._workspaces.clear()
        self._kept_rows = self.chunks = self.device = None
        run_all(closing)

    # ---- the VAE ---------------------------------------------------------------------------------

    def encode(self, pixels: F32) -> tuple[F32, F32]:
        """Images [N, C, H, W] in [0, 1] to mu and logvar, [N, z_dim] each."""
        encoder = self.graph("vae_encoder")
        means, logvars = [], []
        for begin in range(0, len(pixels), self.max_batch):
            outputs = encoder(image=np.ascontiguousarray(pixels[begin : begin + self.max_batch]))
            means.append(self._finite(outputs, "vae_encoder", "mu").copy())
            logvars.append(self._finite(outputs, "vae_encoder", "logvar").copy())
        return np.concatenate(means), np.concatenate(logvars)

    def decode(self, z: F32) -> F32:
        """Latents [N, z_dim] to images in [-1, 1], [N, C, H, W]: cond = 2 * decoder(z) - 1."""
        images = np.empty((len(z), *self.shape), np.float32)
        for begin in range(0, len(z), self.max_batch):
            self._decode_into(z[begin : begin + self.max_batch], images[begin : begin + self.max_batch])
        return images

    def _decode_into(self, z: F32, out: F32) -> None:
        outputs = self.graph("vae_decoder")(z=np.ascontiguousarray(z))
        np.multiply(self._finite(outputs, "vae_decoder", "image"), np.float32(2), out=out)
        out -= np.float32(1)

    # ---- a run -----------------------------------------------------------------------------------

    def step_table(self, setting: Setting, *, noised_image: bool = False) -> StepTable:
        """The rows of `setting`; with `noised_image` and no t_start, from the image noised to T - 1."""
        table = build_step_table(
            self.schedule,
            formulation=self.model.formulation,
            steps=setting.steps,
            method=setting.method,
            spacing=setting.spacing,
            eta=setting.eta,
            variance=setting.variance,
            t_start=setting.t_start,
            temperature=setting.temperature,
            clip=setting.clip,
        )
        if not noised_image or setting.t_start is not None:
            return table
        # q(x_T-1 | image) = N(sqrt(alpha_bar) * image, 1 - alpha_bar): what the reference encodes images to.
        alpha_bar = float(self.schedule.alpha_bar[-1])
        noise_scale = setting.temperature * math.sqrt(1 - alpha_bar)
        return replace(table, start=replace(table.start, k_image=math.sqrt(alpha_bar), k_noise=noise_scale))

    def run(self, request: Request, callback: Callback | None, progress: bool) -> Batch:
        """Run a whole request and return a batch that shares no memory with the runner."""
        timings = Timings()
        make_bar = _bar_maker() if progress else None  # importing tqdm is not part of the run
        with timings.clock("total_ms"):
            table = self.step_table(request.setting, noised_image=request.noised_image)
            arguments.check_noise_steps(request.noise, table.steps)
            batch = self._empty_batch(request, table, timings)
            size = self._chunk_size(request)
            chunks = range(0, len(request.seeds), size)
            with _ticking(make_bar, table.steps * len(chunks)) as tick:
                for begin in chunks:
                    part = request.part(begin, begin + size)
                    if self.chunks is not None:
                        outcome = self.chunks.run(self._chunk(part, table, begin, _watch(callback, tick)), timings)
                        _keep(batch, slice(begin, begin + len(part.seeds)), outcome)
                        timings.chunks += 1
                    else:
                        self._run_chunk(part, table, batch, begin, _watch(callback, tick))
        return batch

    def run_on_device(self, request: Request, chunks: ChunkEngine) -> DeviceBatch:
        """Run a whole request and leave the results on the device."""
        timings = Timings()
        with timings.clock("total_ms"):
            table = self.step_table(request.setting, noised_image=request.noised_image)
            arguments.check_noise_steps(request.noise, table.steps)
            n, size = len(request.seeds), self._chunk_size(request)
            results = chunks.results(n, recon=self.model.conditional, z=self._has_z(request))
            for begin in range(0, n, size):
                part = request.part(begin, begin + size)
                into = {name: array[begin : begin + size] for name, array in results.items()}
                chunks.run_into(self._chunk(part, table, begin, None), timings, into)
                timings.chunks += 1
        return DeviceBatch(
            images=results["images"],
            recon=results.get("recon"),
            z=results.get("z"),
            x=results["x"],
            seeds=request.seeds.copy(),
            timesteps=np.array(table.timesteps, np.int64),
            setting=request.setting,
            timings=timings,
        )

    def _chunk_size(self, request: Request) -> int:
        """How many samples run at once."""
        if self.chunks is None:
            return self.max_batch
        return min(self.max_batch, self.chunks.limit(guided=request.setting.guidance != 0.0))

    def _chunk(self, part: Request, table: StepTable, first: int, watch: Callback | None) -> Chunk:
        """A part of a request for what runs whole chunks; z and x_T that are not given are drawn there."""
        return Chunk(
            table,
            part.seeds,
            guidance=part.setting.guidance,
            z=self._latent(part) if self._uses_prior(part.setting.prior) else part.z,
            x_T=part.start_noise,
            noise=part.noise,
            cond=part.cond,
            image=part.image,
            watch=watch,
            first=first,
            where=f"{self.backend}, precision {self.precision}",
        )

    def _run_chunk(self, part: Request, table: StepTable, batch: Batch, first: int, watch: Callback | None) -> None:
        n, guidance, timings = len(part.seeds), part.setting.guidance, batch.timings
        work = self._workspace(n, guidance != 0.0)
        with timings.clock("noise_ms"):
            z = self._latent(part)
            x_T = part.start_noise if part.start_noise is not None else noises.initial(part.seeds, self.shape)
        with timings.clock("vae_ms"):
            self._condition(part, z, work)
        with timings.clock("table_ms"):
            embeddings = self._embeddings(table, z, work)
        with timings.clock("update_ms"):
            start_state(table.start, work, x_T, part.image if part.image is not None else work.cond)
        where = f"{self.backend}, precision {self.precision}"
        chain = Chain(
            table,
            self.graph("denoiser"),
            embeddings,
            seeds=part.seeds,
            noise=part.noise,
            guidance=guidance,
            threads=self.threads,
            watch=watch,
            first=first,
            where=where,
        )
        x = run_chain(chain, work, timings)
        with timings.clock("post_ms"):
            _store(batch, slice(first, first + n), x, z, work.cond)
        timings.chunks += 1

    def _latent(self, part: Request) -> F32 | None:
        """The given z, or a drawn one where the model has a VAE and the condition is not given."""
        if part.z is not None or self.model.z_dim is None or part.cond is not None:
            return part.z
        return self.draw_latent(part.seeds, part.setting.prior)

    def draw_latent(self, seeds: npt.NDArray[np.uint64], prior: str | None) -> F32:
        """z of each seed, [N, z_dim]: from the bundle's prior when that is what `prior` names, else from N(0, I)."""
        if self.prior is not None and self._uses_prior(prior):
            return self.prior.draw(seeds)
        return noises.latent(seeds, (self.model.z_dim or 0,))

    def _uses_prior(self, prior: str | None) -> bool:
        """Whether latents come from the bundle's prior, which only the host draws from."""
        return prior == "bundle" and self.prior is not None

    def _condition(self, part: Request, z: F32 | None, work: Workspace) -> None:
        """Fill the workspace's condition, in [-1, 1]: given, or the VAE's reconstruction of z."""
        if work.cond is None:
            return
        if part.cond is not None:
            np.copyto(work.cond, part.cond)
        elif z is not None:
            self._decode_into(z, work.cond)

    def _embeddings(self, table: StepTable, z: F32 | None, work: Workspace) -> F32:
        """The timestep table's rows: [S, 1, R], or [S, n or 2n, R] for a model conditioned on z."""
        timesteps = np.ascontiguousarray(table.timesteps, np.int64)
        if self.model.z_conditioned and z is not None:
            lanes = np.concatenate([z, np.zeros_like(z)]) if work.guided else z
            return self._rows(timesteps=timesteps, z=np.ascontiguousarray(lanes))
        key = timesteps.tobytes()
        if self._kept_rows is None or self._kept_rows[0] != key:
            self._kept_rows = key, self._rows(timesteps=timesteps)[:, None, :]
        return self._kept_rows[1]

    def _rows(self, **inputs: np.ndarray) -> F32:
        return self._finite(self.graph("timestep_table")(**inputs), "timestep_table", "rows").copy()

    # ---- what is kept between runs ---------------------------------------------------------------

    def graph(self, role: str) -> Graph:
        """The graph of a role, loaded when it is first asked for."""
        # A twin may be made in one thread while this runner runs in another: a graph is loaded once even so.
        with self._loading:
            if role not in self._graphs:
                # The table runs once a schedule, and what it rounds off enters every step: it stays in float32.
                precision = "f32" if role == "timestep_table" else self.precision
                self._graphs[role] = backends.load(
                    self.bundle,
                    role,
                    backend=self.backend,
                    precision=precision,
                    threads=self.threads,
                    device=self.device,
                )
            return self._graphs[role]

    def _workspace(self, n: int, guided: bool) -> Workspace:
        """The buffers of this batch shape; those least recently used are dropped beyond KEPT_SHAPES."""
        key = (n, guided)
        if key not in self._workspaces:
            self._workspaces[key] = Workspace(n, self.shape, conditional=self.model.conditional, guided=guided)
            if len(self._workspaces) > KEPT_SHAPES:
                self._workspaces.popitem(last=False)
        self._workspaces.move_to_end(key)
        return self._workspaces[key]

    def _empty_batch(self, request: Request, table: StepTable, timings: Timings) -> Batch:
        n, (channels, height, width) = len(request.seeds), self.shape
        has_z = self._has_z(request)
        pixels = (n, height, width, channels)
        return Batch(
            images=np.empty(pixels, np.uint8),
            recon=np.empty(pixels, np.uint8) if self.model.conditional else None,
            z=np.empty((n, self.model.z_dim or 0), np.float32) if has_z else None,
            x=np.empty((n, *self.shape), np.float32),
            seeds=request.seeds.copy(),
            timesteps=np.array(table.timesteps, np.int64),
            setting=request.setting,
            timings=timings,
        )

    def _has_z(self, request: Request) -> bool:
        """Whether a latent takes part in a request."""
        return request.z is not None or (self.model.z_dim is not None and request.cond is None)

    def _finite(self, outputs: Arrays, role: str, name: str) -> F32:
        """One output of a small graph, behind the NaN guard; the denoiser's is part of the fused update."""
        values = cast(F32, outputs[name])
        if not np.isfinite(values).all():
            raise NumericsError(
                f"The graph {role!r} ({self.backend}, precision {self.precision}) returned NaN or infinity "
                f"before the first step; every value was expected to be finite. Check the z or images you passed, "
                f"and build the bundle again from its checkpoint if they are ordinary."
            )
        return values


def _store(batch: Batch, where: slice, x: F32, z: F32 | None, cond: F32 | None) -> None:
    """Copy a finished chunk into the batch and round it to pixels."""
    batch.x[where] = x
    kernels.to_uint8(x, out=batch.images[where])
    if batch.recon is not None and cond is not None:
        kernels.to_uint8(cond, out=batch.recon[where])
    if batch.z is not None and z is not None:
        batch.z[where] = z


def _keep(batch: Batch, where: slice, outcome: Outcome) -> None:
    """Copy a chunk that a device finished into the batch."""
    for name in ("images", "recon", "x", "z"):
        target, values = getattr(batch, name), getattr(outcome, name)
        if target is not None:
            target[where] = values


def _watch(callback: Callback | None, tick: Callable[[], Any] | None) -> Callback | None:
    """One watcher for the chain: moves the progress bar, then asks the caller's callback."""
    if tick is None:
        return callback

    def watch(info: StepInfo) -> object:
        tick()
        return callback(info) if callback is not None else None

    return watch


def _bar_maker() -> Callable[[int], Any]:
    """What makes a bar on stderr that shows itself after two seconds."""
    from tqdm import tqdm

    return lambda total: tqdm(total=total, delay=2, unit="step", leave=False)


@contextmanager
def _ticking(make_bar: Callable[[int], Any] | None, total: int) -> Iterator[Callable[[], Any] | None]:
    """Yields what moves the bar by one step, or None without a bar."""
    if make_bar is None:
        yield None
        return
    with make_bar(total) as bar:
        yield bar.update
