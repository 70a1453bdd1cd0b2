"""`Sampler`: a bundle, opened, and what can be asked of it.

Requests are checked here and taken through the bundle's pipeline (engine/pipeline.py), one at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from engine import backends, checks, kernels, resolve
from engine.argument_checks import is_integer
from engine.bundle.examples import example_inputs
from engine.bundle.inputs import InputSpec
from engine.bundle.reader import Bundle
from engine.device.arrays import DeviceBatch, stream_handle
from engine.errors import ArgumentError, BundleError, HostMemoryError, SamplerStateError
from engine.pipeline import Arrays, Pipeline
from engine.request import Request, Watch
from engine.resolve import OPTIONS, REQUEST_OPTIONS, SETTING_OPTIONS
from engine.result import F32, U8, Batch
from engine.solver import noise as noises
from engine.threads import resolve_threads

Seed: TypeAlias = "SupportsIndex | Sequence[SupportsIndex] | npt.NDArray[np.integer[Any]] | None"
Scale: TypeAlias = "float | Sequence[float] | npt.NDArray[np.floating[Any]] | None"  # one number, or one a step


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
        kernels.implementation()  # a missing library is said before anything is loaded
        self.bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        self._opened_with = (backend, precision, threads, max_batch, device)
        self.backend, self.precision, self.choice = backends.choose(self.bundle, backend, precision)
        self.threads = resolve_threads(threads)
        opened = backends.open_backend(self.bundle, self.backend, self.precision, self.threads, device)
        self._pipeline = Pipeline.open(opened, int(max_batch))
        self.max_batch = self._pipeline.max_batch
        self._lock, self._process = threading.Lock(), os.getpid()
        self._closed = False

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What this bundle takes by name, beside the options of `sample`."""
        return self.bundle.manifest.inputs

    # ---- verbs -------------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int | None = None,
        *,
        steps: int | None = None,
        seed: Seed = None,
        timesteps: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
        spacing: str | None = None,
        rho: float | None = None,
        method: str | None = None,
        eta: Scale = None,
        t_start: int | None = None,
        temperature: float | None = None,
        noise_scale: Scale = None,
        eps_scale: Scale = None,
        guidance: float | None = None,
        variance: str | None = None,
        clip: bool = True,
        prior: str | None = None,
        x_T: npt.ArrayLike | None = None,
        noise: npt.ArrayLike | None = None,
        callback: Watch | None = None,
        progress: bool = False,
        **inputs: Any,
    ) -> Batch:
        """Sample N images.

        n          number of images; may be left out where seed (a list), x_T, noise or an input says it, else 1
        steps, timesteps, spacing, rho, method, eta, t_start
                   the few-step setting. With none of them given the bundle's recorded setting applies as
                   a whole, its scales and guidance included; naming any replaces it by ddim, uniform
                   spacing (linspace with t_start), eta 0, no t_start, scales 1, guidance 0, at the
                   recorded number of steps
        timesteps  the network's own, falling, such as [400, 244, 111, 38, 9], in place of steps and spacing
        seed       int (of any kind, numpy's too): sample i uses seed + i. A list or array: one a sample. None: drawn
                   from the OS, see `batch.seeds`. A sample depends on its own seed only, never on the batch around it
        t_start    start from sqrt(alpha_bar_t) * image + sqrt(1 - alpha_bar_t) * noise at this timestep, where
                   image is the pipeline's start value (a first stage's reconstruction, say); with timesteps the first
        temperature, noise_scale, eps_scale
                   scale the noise of the start, that of the steps, and the network's eps. The last two and eta are one
                   number, or one a step
        guidance   w in e_c + w * (e_c - e_u), e_u from the nulls of what is conditioned on; not 0 doubles the
                   network's work
        variance   "fixedlarge", "fixedsmall" or, where the network has it, "learned_range" (ddpm); None is the bundle's own
        clip       limit each step's prediction of the state as the pipeline says
        prior      what the drawn input comes from: "bundle", its fitted density, or "standard", N(0, I); None is
                   the bundle's where it has one. `batch.setting.prior` says which it was
        x_T        [N or 1, C, H, W], the unit Gaussian that the start's coefficients multiply (temperature scales
                   it)
        noise      [rows, N or 1, C, H, W] or [rows, C, H, W], in the order used; read in the rows that add noise
        callback   called with a StepInfo after each step; a true answer stops the run (`Cancelled`)
        progress   a bar on stderr once a run takes longer than two seconds
        inputs     what the bundle declares (`sampler.inputs`), by name: [N, ...], or one sample for all. One that
                   is drawn may be left out

        float inputs, x_T and noise take float32 or float64; on a GPU backend inputs and x_T may lie on the device,
        as for `sample_on_device`. Raises ArgumentError, BackendError (DeviceError among them), NumericsError or
        Cancelled.
        """
        # In the order of SETTING_OPTIONS, so that the two cannot drift apart unnoticed.
        scales = (temperature, noise_scale, eps_scale)
        values = (steps, timesteps, spacing, rho, method, eta, t_start, *scales, guidance, variance)
        setting = dict(zip(SETTING_OPTIONS, values, strict=True))
        options = {"clip": clip, "seed": seed, "x_T": x_T, "noise": noise, "prior": prior, "callback": callback, **inputs}
        with self._exclusive():
            return self._pipeline.run(self._request({**setting, **options}, "sample", n=n), progress)

    def sample_on_device(self, n: int | None = None, *, stream: object = None, **options: Any) -> DeviceBatch:
        """As `sample`, with the results left on the GPU: arrays that torch, CuPy and pycuda take without a copy.

        inputs, x_T  may lie on the GPU too (`__cuda_array_interface__` or DLPack, C-contiguous)
        stream       what was enqueued in it until now is waited for: a number, or torch's, CuPy's or pycuda's stream.
                     None: what the arrays themselves say, else the legacy default stream
        The results are complete when this returns. The other options are those of `sample` but callback and
        progress. Only on a GPU backend.
        """
        checks.check_inputs(options, self.inputs, REQUEST_OPTIONS, "sample_on_device")
        with self._exclusive():
            chain = self._pipeline.backend.device_chain()
            if stream is not None:
                chain.wait_for(stream_handle(stream))
            return self._pipeline.run_on_device(self._request(options, "sample_on_device", n=n), chain)

    def draw(self, n: int | None = None, *, seed: Seed = None, prior: str | None = None) -> Arrays:
        """The drawn input as `sample` would draw it for these seeds from this prior: {name: float32 [N, ...]}."""
        self._drawn("draw")
        seeds = noises.resolve_seeds(seed, n)
        with self._exclusive():
            return self._pipeline.draw(seeds, resolve.choose_prior(self.bundle.manifest, prior, draws=True))

    def interpolate(
        self,
        a: Any,
        b: Any,
        n: int = 8,
        *,
        mode: str = "lerp",
        seed: Seed = None,
        prior: str | None = None,
        **options: Any,
    ) -> Batch:
        """n images from a to b: the drawn input z moves, x_T and the steps' noise stay those of one seed.

        a, b  int seeds (z as `sample(seed=a)` draws it) or one sample of z
        mode  "lerp", z = (1 - u) a + u b for u from 0 to 1; or "slerp", along the arc between them, which keeps
              the length that Gaussian vectors have (those of N(0, I): a fitted prior has means of its own)
        prior what the z of a seed is drawn from, as for `sample`
        seed  of the shared noise; None is a where a is a seed (the first image is then `sample(seed=a)`),
              else drawn
        The other options are those of `sample`.
        """
        drawn = self._drawn("interpolate")
        checks.check_inputs(options, self.inputs, OPTIONS, "interpolate")
        count = checks.count_of(n) or 1
        from_prior = resolve.choose_prior(
            self.bundle.manifest, prior, draws=any(is_integer(end) for end in (a, b))
        )
        ends = [self._end(end, name, drawn, from_prior) for end, name in ((a, "a"), (b, "b"))]
        path = checks.between(ends[0].ravel(), ends[1].ravel(), count, mode).reshape(count, *ends[0].shape)
        if seed is None and is_integer(a):
            seed = a
        shared = noises.resolve_seeds(seed, 1)
        given: dict[str, Any] = {drawn.name: path, "seed": np.repeat(shared, count)}
        batch = self.sample(**given, **options)
        return replace(batch, setting=replace(batch.setting, prior=from_prior))

    def reconstruct(self, images: npt.ArrayLike, **options: Any) -> Batch:
        """Encode images to inputs, and sample from those, started from the noised images.

        images  uint8 [N, H, W, C] or [H, W, C], or float [N, C, H, W] in [0, 1]
        The chain starts from sqrt(alpha_bar_t) * image + sqrt(1 - alpha_bar_t) * noise at t_start; without
        one at T - 1. `batch.values` holds what the images were encoded to. The options are those of `sample`, n
        and the encoded inputs apart.
        """
        checks.check_inputs(options, self.inputs, OPTIONS, "reconstruct")
        self._needs_encoder("reconstruct")
        pixels = self._start_pixels(images, "reconstruct")
        with self._exclusive():
            encoded = self._encoded_inputs(pixels)
            self._refuse_given(options, encoded, "reconstruct")
            request = self._request({**options, **encoded}, "reconstruct", start=2 * pixels - 1, noised_image=True)
            return self._pipeline.run(request, bool(options.get("progress")))

    def refine(self, images: npt.ArrayLike, **options: Any) -> Batch:
        """Let the images stand for the pipeline's start value (denoise, sharpen): what the network is conditioned on.

        images  uint8 [N, H, W, C] or [H, W, C], or float [N, C, H, W] in [0, 1]
        With t_start the chain starts from the noised image, without from x_T. Inputs that the network takes beside
        are encoded from the images. A bundle whose pipeline has no start value needs t_start, and then only the
        start knows the image. The options are those of `sample`, n apart.
        """
        checks.check_inputs(options, self.inputs, OPTIONS, "refine")
        pixels = self._start_pixels(images, "refine")
        image = 2 * pixels - 1
        start = self.bundle.manifest.pipeline.state.start
        with self._exclusive():
            given = {} if start is None else {start: image}
            needed = [spec.name for spec in resolve.needed_inputs(self.bundle.manifest, given)]
            encoded: Arrays = {}
            if self.bundle.manifest.pipeline.encode:
                missing = [name for name in needed if name not in options]
                encoded = {k: v for k, v in (self._encoded_inputs(pixels) if missing else {}).items() if k in missing}
            request = self._request({**options, **encoded}, "refine", start=image, given=given)
            if start is None and request.setting.t_start is None:
                raise ArgumentError(
                    "refine on a bundle without a start value has nothing to refine from: found no t_start, expected "
                    "one. Pass t_start, for example t_start=400, and steps."
                )
            return self._pipeline.run(request, bool(options.get("progress")))

    def encode(self, images: npt.ArrayLike) -> Arrays:
        """What the pipeline's encoder makes of images (as `reconstruct` takes them), by value name: [N, ...] each."""
        self._needs_encoder("encode")
        pixels = checks.images_of(images, self._encoder_shape())
        with self._exclusive():
            return self._pipeline.encode(pixels)

    def decode(self, value: npt.ArrayLike | None = None, **inputs: npt.ArrayLike) -> U8:
        """The start value that the pipeline makes of inputs, as pixels: uint8 [N, H, W, C].

        value: the drawn input without its name.
        """
        start = self.bundle.manifest.pipeline.state.start
        if start is None or start in [spec.name for spec in self.inputs]:
            raise self._lacks("decode", "a start value that its pipeline makes of inputs")
        if value is not None:
            inputs = {self._drawn("decode").name: value, **inputs}
        checks.check_inputs(inputs, self.inputs, (), "decode")
        arrays = {spec.name: checks.input_of(spec, inputs[spec.name]) for spec in self.inputs if spec.name in inputs}
        needed = [spec.name for spec in resolve.needed_inputs(self.bundle.manifest, {}, (start,))]
        if missing := [name for name in needed if name not in arrays]:
            raise ArgumentError(f"decode: found no {', '.join(missing)}, expected {', '.join(needed)}. Pass them by name.")
        with self._exclusive():
            return self._pipeline.decode(arrays)

    def warmup(self, n: int = 1, **options: Any) -> None:
        """Load every graph and run each once at batch n (and with the options of `sample`, such as guidance).

        The first real request then pays no first-run costs. Inputs that are not drawn are taken from `options`, else
        zeros or what is nearest to them in range, of size 1 in free dimensions.
        """
        blank = example_inputs(self.bundle.manifest, free=1) or {}
        quick: dict[str, Any] = {} if options.get("timesteps") is not None else {"steps": 1, "spacing": "linspace"}
        self.sample(n, **{**quick, "seed": 0, **blank, **options})
        if self.bundle.manifest.pipeline.encode:
            self.encode(np.zeros((n, *self._encoder_shape()), np.float32))

    def clone(self) -> Sampler:
        """A Sampler over the same weights with states and buffers of its own, for another thread.

        Can be called while this one runs; each of the two is closed by itself.
        """
        self._check_process()
        self._check_open()
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._pipeline = self._pipeline.clone()
        twin._lock = threading.Lock()
        return twin

    def __copy__(self) -> Sampler:
        return self.clone()

    def __deepcopy__(self, memo: object) -> Sampler:
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds what this was opened with, and the bundle's hash; unpickling opens the bundle again."""
        self._check_open()
        device = self._opened_with[-1]
        if device is not None and not isinstance(device, int):
            raise ArgumentError(
                f"device: found {device!r}, which belongs to this process, expected None or a number for a Sampler that is "
                "pickled; open it with the GPU's number"
            )
        return _open_again, (type(self), os.path.abspath(self.bundle.path), self.bundle.digest, *self._opened_with)

    def close(self) -> None:
        """Free graphs and buffers; closing twice does no harm."""
        if self._closed:
            return
        if self._process != os.getpid():
            self._closed = True  # a child's copy: what it holds is the parent's
            return
        with self._exclusive():
            self._closed = True
            self._pipeline.close()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Sampler({str(self.bundle.path)!r}, backend={self.backend!r}, precision={self.precision!r})"

    # ---- state -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One run at a time: a second one would overwrite the graphs' and buffers' contents of the first."""
        self._check_process()
        if not self._lock.acquire(blocking=False):
            raise SamplerStateError(
                "This Sampler is running already, in another thread or below the callback that called it; "
                "expected one request at a time. Give each thread its own with sampler.clone()."
            )
        try:
            self._check_open()
            yield
        except MemoryError as error:
            raise HostMemoryError(
                f"found no memory for this request ({error or type(error).__name__}), expected room for all results "
                "at once; ask for fewer images at a time, or lower max_batch"
            ) from error
        finally:
            self._lock.release()

    def _check_process(self) -> None:
        """In a child of fork: locks of its own, as those of the parent may be held for ever; or a refusal where the
        backend's threads stayed in the parent."""
        if self._process == os.getpid():
            return
        self._pipeline.backend.enter_child()
        self._lock, self._process = threading.Lock(), os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            raise SamplerStateError("This Sampler is closed; expected an open one. Open the bundle again.")

    # ---- what the pipeline declares ----------------------------------------------------------------------------------

    def _request(self, options: dict[str, Any], where: str, **more: Any) -> Request:
        return resolve.resolve_request(self._pipeline, options, where, **more)

    def _drawn(self, what: str) -> InputSpec:
        """The drawn input; ArgumentError where there is none."""
        drawn = self.bundle.manifest.drawn
        if drawn is None:
            raise self._lacks(what, "an input that is drawn")
        return drawn

    def _end(self, end: Any, name: str, drawn: InputSpec, prior: str | None) -> F32:
        """One end of an interpolation as one sample of the drawn input: of a seed, or as given."""
        if is_integer(end) or isinstance(end, (bool, np.bool_)):
            seeds = noises.resolve_seeds(end, 1)  # refuses a bool
            return self._pipeline.draw(seeds, prior)[drawn.name][0]
        found = checks.input_of(replace(drawn, name=name), end)
        if len(found) != 1:
            raise ArgumentError(f"{name} holds {len(found)} samples of {drawn.name}; expected one, or an int seed.")
        return found[0]

    def _encoder_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the images that `encode` takes."""
        channels, height, width = self._pipeline.encoder_image.sample
        return int(channels), int(height), int(width)

    def _encoded_inputs(self, pixels: F32) -> Arrays:
        """Those values of `encode` that are inputs."""
        declared = [spec.name for spec in self.inputs]
        return {name: value for name, value in self._pipeline.encode(pixels).items() if name in declared}

    def _start_pixels(self, images: npt.ArrayLike, what: str) -> F32:
        """Images that the chain can start from; ArgumentError where its state is no image."""
        spec = self.bundle.manifest.pipeline
        if spec.image != "x":
            raise self._lacks(what, f"a state that is the image: it decodes one of {list(spec.state.shape)}")
        return checks.images_of(images, spec.state.shape)

    def _needs_encoder(self, what: str) -> None:
        if not self.bundle.manifest.pipeline.encode:
            raise self._lacks(what, "an encoder (`pipeline.encode`)")

    def _refuse_given(self, options: dict[str, Any], encoded: Arrays, what: str) -> None:
        for name in encoded:
            if options.get(name) is not None:
                raise ArgumentError(f"{what} encodes {name} from the images; expected none beside them. Leave {name} out.")

    def _lacks(self, what: str, needed: str) -> ArgumentError:
        manifest = self.bundle.manifest
        takes = ", ".join(str(spec) for spec in manifest.inputs) or "no inputs"
        return ArgumentError(
            f"{what} needs {needed}, which this bundle lacks: it takes {takes}, and holds the graphs "
            f"{', '.join(manifest.graphs)}. Build a bundle from a checkpoint that has it."
        )


def _open_again(
    kind: type[Sampler],
    path: str,
    digest: str,
    backend: str,
    precision: str,
    threads: int | None,
    max_batch: int,
    device: Any,
) -> Sampler:
    """What a pickle calls; BundleError when another bundle lies there now."""
    bundle = Bundle.open(path)
    if bundle.digest != digest:
        raise BundleError(
            f"{path}: found the bundle {bundle.digest}, expected {digest} as when the Sampler was pickled; it was built "
            f"again since: open it anew with Sampler({path!r})"
        )
    return kind(bundle, backend, precision, threads, max_batch=max_batch, device=device)
