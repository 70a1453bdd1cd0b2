"""How does a bundle become images? The Sampler checks requests and hands them to its runner, one at a time.

VAE:     z ~ N(0, I), or the bundle's prior  ->  recon = decoder(z)  ->  cond = 2 * recon - 1
DDPM:    x_T ~ N(0, I)  ->  engine/chain.py, conditioned on cond  ->  image
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engine import backends, kernels
from engine import checks as arguments
from engine.bundle.prior import resolve_prior
from engine.bundle.reader import Bundle
from engine.chunk import ChunkEngine
from engine.device.arrays import DeviceBatch, is_on_device, stream_handle
from engine.errors import ArgumentError, SamplerStateError
from engine.request import Request
from engine.result import F32, U8, Batch
from engine.runner import Callback, Runner
from engine.solver import noise as noises
from engine.threads import resolve_threads

Seed: TypeAlias = "int | Sequence[int] | npt.NDArray[np.integer[Any]] | None"

SETTING_OPTIONS = ("steps", "method", "spacing", "eta", "t_start", "temperature", "guidance", "variance")
DEVICE_OPTIONS = (*SETTING_OPTIONS, "clip", "seed", "x_T", "noise", "prior")
IMAGE_OPTIONS = (*SETTING_OPTIONS, "clip", "seed", "x_T", "noise", "callback", "progress")


class Sampler:
    """Samples from one bundle on one backend; serves one thread at a time (`clone()` gives each its own).

    backend    "auto" (the rule that `diffusevae info` shows) or a name the bundle lists, e.g. "onnxruntime"
    precision  "auto" (part of the same rule), "f32", or "bf16" where backend and processor have it
    threads    None for what affinity and container limits allow
    max_batch  larger requests run in chunks of this many samples, with the same result: memory stays bounded. A plan's
               profile can make it smaller
    device     of a GPU backend: None for the CUDA context that is current in this thread, else the first GPU; a GPU's
               number; or a CUDA context with `.handle` (pycuda's), which must outlive the Sampler

    Attributes: `bundle`, `backend`, `precision`, `threads`, `max_batch`, and `choice`, the sentence that says
    why this backend and precision. Raises BundleError, BackendError or ArgumentError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Bundle,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        *,
        max_batch: int = 64,
        device: object = None,
    ) -> None:
        if max_batch < 1:
            raise ArgumentError(f"max_batch is {max_batch}; expected at least 1.")
        self.bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        self.backend, self.precision, self.choice = backends.choose(self.bundle, backend, precision)
        self.threads = resolve_threads(threads)
        self.max_batch = int(max_batch)
        self._model = self.bundle.manifest.model
        self._runner = Runner(self.bundle, self.backend, self.precision, self.threads, self.max_batch, device)
        self._runner.load()
        self.max_batch = self._runner.max_batch
        self._lock = threading.Lock()
        self._closed = False

    def sample(
        self,
        n: int | None = None,
        *,
        steps: int | None = None,
        seed: Seed = None,
        method: str | None = None,
        spacing: str | None = None,
        eta: float | None = None,
        t_start: int | None = None,
        temperature: float | None = None,
        guidance: float | None = None,
        variance: str | None = None,
        clip: bool = True,
        prior: str | None = None,
        z: npt.ArrayLike | None = None,
        x_T: npt.ArrayLike | None = None,
        noise: npt.ArrayLike | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Batch:
        """Sample N images: draw z, take the VAE's reconstruction of it as condition, then the chain.

        n          number of images; may be left out where seed (a list), z, x_T or noise says it, else 1
        steps, method, spacing, eta, t_start
                   the few-step setting. With none of the five given the bundle's recorded setting applies as
                   a whole, its temperature and guidance included; naming any replaces it by ddim, uniform
                   spacing (linspace with t_start), eta 0, no t_start, temperature 1, guidance 0, at the
                   recorded number of steps
        seed       int: sample i uses seed + i. A list: one a sample. None: drawn from the OS, see
                   `batch.seeds`. A sample depends on its own seed only, never on the batch around it
        t_start    start from sqrt(alpha_bar_t) * recon + sqrt(1 - alpha_bar_t) * noise at this timestep
        guidance   w in eps_c + w * (eps_c - eps_u); not 0 doubles the network's work
        variance   "fixedlarge" or "fixedsmall" (DDPM); None is the bundle's own
        clip       limit each step's prediction of the image to [-1, 1]
        prior      what z is drawn from: "bundle", the density that was fitted to the VAE, or "standard",
                   N(0, I); None is the bundle's where it has one. `batch.setting.prior` says which it was
        z          [N, z_dim] or [N, z_dim, 1, 1] instead of the drawn latent
        x_T        [N or 1, 3, H, W], the unit Gaussian that the start's coefficients multiply (formulation 2
                   adds the condition, temperature scales it)
        noise      [S, N or 1, 3, H, W] or [S, 3, H, W], in the order used; read in the steps whose sigma is
                   not 0
        callback   called with a StepInfo after each step; a true answer stops the run (`Cancelled`)
        progress   a bar on stderr once a run takes longer than two seconds

        z, x_T and noise take float32 or float64; on a GPU backend z and x_T may lie on the device, as for
        `sample_on_device`. Raises ArgumentError, BackendError (DeviceError among them), NumericsError or
        Cancelled.
        """
        # `setting` in the order of SETTING_OPTIONS, so that the two cannot drift apart unnoticed.
        values = (steps, method, spacing, eta, t_start, temperature, guidance, variance)
        options = {
            **dict(zip(SETTING_OPTIONS, values, strict=True)),
            "clip": clip,
            "seed": seed,
            "x_T": x_T,
            "noise": noise,
            "prior": prior,
        }
        with self._exclusive():
            return self._runner.run(self._request(options, n=n, z=self._latent(z)), callback, progress)

    def sample_on_device(
        self, n: int | None = None, *, z: Any = None, stream: object = None, **options: Any
    ) -> DeviceBatch:
        """As `sample`, with the results left on the GPU: arrays that torch, CuPy and pycuda take without a copy.

        z, x_T  may lie on the GPU too (`__cuda_array_interface__` or DLPack, float32, C-contiguous)
        stream  what was enqueued in it until now is waited for: a number, or torch's, CuPy's or pycuda's stream.
                None: what the arrays themselves say, else the legacy default stream
        The results are complete when this returns. The other options are those of `sample` but callback and
        progress. Only on a GPU backend.
        """
        arguments.check_options(options, DEVICE_OPTIONS, "sample_on_device")
        with self._exclusive():
            chunks = self._chunks("sample_on_device")
            if stream is not None:
                chunks.wait_for(stream_handle(stream))
            return self._runner.run_on_device(self._request(options, n=n, z=self._latent(z)), chunks)

    def latents(self, n: int | None = None, *, seed: Seed = None, prior: str | None = None) -> F32:
        """The z that `sample` would draw for these seeds from this prior, float32 [N, z_dim]."""
        self._needs_vae("latents")
        seeds = noises.resolve_seeds(seed, n)
        with self._exclusive():
            return self._runner.draw_latent(seeds, self._prior(prior, draws=True))

    def from_latent(self, z: npt.ArrayLike, **options: Any) -> Batch:
        """Sample from the latents z, [N, z_dim]; the options are those of `sample`."""
        return self.sample(z=z, **options)

    def interpolate(
        self,
        a: Any,
        b: Any,
        n: int = 8,
        *,
        mode: str = "lerp",
        seed: int | None = None,
        prior: str | None = None,
        **options: Any,
    ) -> Batch:
        """n images from a to b: z moves, x_T and the steps' noise stay those of one seed.

        a, b  int seeds (z as `sample(seed=a)` draws it) or latents [z_dim]
        mode  "lerp", z = (1 - u) a + u b for u from 0 to 1, as the reference implementation does; or "slerp",
              along the arc between them, which keeps the length that Gaussian latents have (those of N(0, I):
              latents of a fitted prior lie around means of their own)
        prior what the z of a seed is drawn from, as for `sample`
        seed  of the shared noise; None is a where a is a seed (the first image is then `sample(seed=a)`),
              else drawn
        The other options are those of `sample`.
        """
        arguments.check_options(options, IMAGE_OPTIONS, "interpolate")
        self._needs_vae("interpolate")
        count = arguments.count_of(n) or 1
        drawn = self._prior(prior, draws=any(isinstance(end, (int, np.integer)) for end in (a, b)))
        path = arguments.between(self._end(a, "a", drawn), self._end(b, "b", drawn), count, mode)
        if seed is None and isinstance(a, (int, np.integer)):
            seed = int(a)
        shared = noises.resolve_seeds(seed, 1)
        batch = self.sample(z=path, seed=np.repeat(shared, count), **options)
        return replace(batch, setting=replace(batch.setting, prior=drawn))

    def reconstruct(self, images: npt.ArrayLike, **options: Any) -> Batch:
        """Encode images to their latent means, decode, and refine the reconstruction from the noised image.

        images  uint8 [N, H, W, 3] or [H, W, 3], or float [N, 3, H, W] in [0, 1]
        The chain starts from sqrt(alpha_bar_t) * image + sqrt(1 - alpha_bar_t) * noise at t_start; without
        one at T - 1, as in the reference implementation. `batch.z` holds the means, `batch.recon` the VAE's
        reconstruction. The options are those of `sample`, n and z apart.
        """
        arguments.check_options(options, IMAGE_OPTIONS, "reconstruct")
        self._needs_vae("reconstruct")
        pixels = self._pixels(images)
        request = self._request(options, image=2 * pixels - 1)
        with self._exclusive():
            mu, _ = self._runner.encode(pixels)
            return self._run(replace(request, z=mu, noised_image=True), options)

    def refine(self, images: npt.ArrayLike, **options: Any) -> Batch:
        """Take the images themselves as the condition (denoise, sharpen): no VAE on the way.

        images  uint8 [N, H, W, 3] or [H, W, 3], or float [N, 3, H, W] in [0, 1]
        With t_start the chain starts from the noised image, without from x_T. A model conditioned on z too
        gets the latent mean of each image. An unconditional model needs t_start, and then only the start
        knows the image. The options are those of `sample`, n and z apart.
        """
        arguments.check_options(options, IMAGE_OPTIONS, "refine")
        pixels = self._pixels(images)
        request = self._request(options, image=2 * pixels - 1)
        if not self._model.conditional and request.setting.t_start is None:
            raise ArgumentError(
                "refine on an unconditional bundle has nothing to refine from: found no t_start, expected "
                "one. Pass t_start, for example t_start=400, and steps."
            )
        with self._exclusive():
            cond = request.image if self._model.conditional else None
            z = self._runner.encode(pixels)[0] if self._model.z_conditioned else None
            return self._run(replace(request, cond=cond, z=z), options)

    def encode(self, images: npt.ArrayLike) -> tuple[F32, F32]:
        """The VAE's posterior of images (as `reconstruct` takes them): mu and logvar, float32 [N, z_dim]."""
        self._needs_vae("encode")
        pixels = self._pixels(images)
        with self._exclusive():
            return self._runner.encode(pixels)

    def decode(self, z: npt.ArrayLike) -> U8:
        """The VAE's images of latents z, [N, z_dim]: uint8 [N, H, W, 3]."""
        self._needs_vae("decode")
        latent = arguments.latent_of(z, self._model.z_dim)
        with self._exclusive():
            return kernels.to_uint8(self._runner.decode(latent))

    def warmup(self, n: int = 1, **options: Any) -> None:
        """Load every graph and run each once at batch n (and with the options of `sample`, such as guidance).

        The first real request then pays no first-run costs.
        """
        first = self.sample(n, **{"steps": 1, "spacing": "linspace", "seed": 0, **options})
        if "vae_encoder" in self.bundle.manifest.roles:
            self.encode(first.images)

    def clone(self) -> Sampler:
        """A Sampler over the same weights with states and buffers of its own, for another thread.

        Can be called while this one runs; each of the two is closed by itself.
        """
        self._check_open()
        twin = copy(self)
        twin._runner = self._runner.twin()
        twin._lock = threading.Lock()
        return twin

    def close(self) -> None:
        """Free graphs and buffers; closing twice does no harm."""
        if self._closed:
            return
        with self._exclusive():
            self._closed = True
            self._runner.close()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Sampler({str(self.bundle.path)!r}, backend={self.backend!r}, precision={self.precision!r})"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One run at a time: a second one would overwrite the graphs' and buffers' contents of the first."""
        if not self._lock.acquire(blocking=False):
            raise SamplerStateError(
                "This Sampler is running already, in another thread or below the callback that called it; "
                "expected one request at a time. Give each thread its own with sampler.clone()."
            )
        try:
            self._check_open()
            yield
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise SamplerStateError("This Sampler is closed; expected an open one. Open the bundle again.")

    def _run(self, request: Request, options: dict[str, Any]) -> Batch:
        return self._runner.run(request, options.get("callback"), bool(options.get("progress")))

    def _request(
        self, options: dict[str, Any], *, n: int | None = None, z: F32 | None = None, image: F32 | None = None
    ) -> Request:
        """Check everything that a caller gave and settle N."""
        manifest = self.bundle.manifest
        given = {name: options.get(name) for name in SETTING_OPTIONS}
        clip = options.get("clip", True)
        setting = arguments.resolve_setting(asdict(manifest.defaults), manifest.variance, given, clip=clip)
        arguments.check_start(setting, conditional=self._model.conditional, has_image=image is not None)
        draws = self._model.z_dim is not None and z is None and image is None
        setting = replace(setting, prior=self._prior(options.get("prior"), draws=draws))
        shape = (self._model.channels, self._model.image_size, self._model.image_size)
        x_T, noise, seed = (options.get(name) for name in ("x_T", "noise", "seed"))
        start_noise = None if x_T is None else self._start_noise(x_T, shape)
        step_noise = None if noise is None else arguments.step_noise_of(noise, shape)
        counts = {
            "n": arguments.count_of(n),
            "seed": None if seed is None or np.ndim(seed) == 0 else len(seed),
            "z": None if z is None else len(z),
            "images": None if image is None else len(image),
            "x_T": None if start_noise is None else len(start_noise),
            "noise": None if step_noise is None else step_noise.shape[1],
        }
        count = arguments.agree_on_count(counts, shared=("x_T", "noise")) or 1
        seeds = noises.resolve_seeds(seed, count)
        return Request(seeds, setting, z=z, image=image, start_noise=start_noise, noise=step_noise)

    def _chunks(self, what: str) -> ChunkEngine:
        """What runs whole chunks on a device; ArgumentError where the backend runs on the CPU."""
        if self._runner.chunks is None:
            raise ArgumentError(
                f"{what}: found backend {self.backend!r}, which runs on the CPU, expected one of "
                f"{', '.join(backends.GPU_BACKENDS)}; pass arrays on the host and call sample"
            )
        return self._runner.chunks

    def _latent(self, z: Any) -> Any:
        """A latent on the host or on the device, float32 [N, z_dim], or None."""
        if z is None or not is_on_device(z):
            return None if z is None else arguments.latent_of(z, self._model.z_dim)
        arguments.check_has_latent(self._model.z_dim)
        found = self._chunks("z on a CUDA device").borrow(z, "z")
        arguments.check_device_shape("z", found.shape, (self._model.z_dim or 0,))
        return found

    def _start_noise(self, x_T: Any, shape: tuple[int, int, int]) -> Any:
        """x_T on the host or on the device, float32 [N or 1, C, H, W]."""
        if not is_on_device(x_T):
            return arguments.start_noise_of(x_T, shape)
        found = self._chunks("x_T on a CUDA device").borrow(x_T, "x_T")
        arguments.check_device_shape("x_T", found.shape, shape)
        return found

    def _prior(self, asked: str | None, *, draws: bool) -> str | None:
        """The prior that latents are drawn from, None where none is drawn; ArgumentError for one that cannot be."""
        if draws:
            return resolve_prior(asked, self.bundle.manifest.latent_prior is not None)
        if asked is not None:
            raise ArgumentError(
                f"prior is {asked!r}, but no latent is drawn here: it is given, or the model has none. Leave it out."
            )
        return None

    def _end(self, end: Any, name: str, prior: str | None) -> F32:
        """One end of an interpolation as a latent [z_dim]: of a seed, or as given."""
        if isinstance(end, (int, np.integer)):
            return self._runner.draw_latent(noises.resolve_seeds(int(end), 1), prior)[0]
        latent = arguments.latent_of(end, self._model.z_dim, name)
        if len(latent) != 1:
            raise ArgumentError(f"{name} holds {len(latent)} latents; expected one latent [z_dim], or an int seed.")
        return latent[0]

    def _pixels(self, images: npt.ArrayLike) -> F32:
        return arguments.images_of(images, self._model.image_size, self._model.channels)

    def _needs_vae(self, what: str) -> None:
        if not self._model.conditional:
            raise ArgumentError(
                f"{what} needs a VAE, and this bundle is unconditional: it holds "
                f"{', '.join(self.bundle.manifest.graphs)}. Build a bundle from a checkpoint with a VAE "
                f"(python export/build_engines.py CKPT --vae VAE)."
            )
