"""`Sampler`: a bundle, opened, and what can be asked of it.

Requests are checked here and taken through the bundle's pipeline (engine/pipeline.py), one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from engine import abilities, checks, damage, resolve, verbs
from engine import inpaint as inpainting
from engine.bundle.directions import Edits
from engine.bundle.examples import example_inputs
from engine.bundle.inputs import InputSpec
from engine.bundle.manifest import Manifest
from engine.cleanup import NO_MEMORY
from engine.deadline import Budget
from engine.device.arrays import DeviceBatch, stream_handle
from engine.opened import Opened
from engine.pipeline import Arrays, Pipeline
from engine.request import Request, Watch
from engine.resolve import OPTIONS, REQUEST_OPTIONS
from engine.result import U8, Batch
from engine.sizes import Size
from engine.solver import noise as noises
from engine.solver.regulariser import AFTER, OFF
from engine.text import TEXT

Seed: TypeAlias = "SupportsIndex | Sequence[SupportsIndex] | npt.NDArray[np.integer[Any]] | None"
Scale: TypeAlias = "float | Sequence[float] | npt.NDArray[np.floating[Any]] | None"  # one number, or one a step


class Sampler(Opened):
    """Samples from one bundle on one backend; serves one thread at a time (`clone()` gives each its own).

    backend    "auto" (the rule that `diffusevae info` shows) or a name the bundle lists, e.g. "onnxruntime"
    precision  "auto" (part of the same rule), "f32", or "bf16" where backend and processor have it
    threads    None for what affinity and container limits allow
    max_batch  larger requests run in chunks of this many samples, with the same result: memory stays bounded. A plan's
               profile can make it smaller
    device     of a GPU backend: None for the CUDA context that is current in this thread, else the first GPU; a GPU's
               number; or a CUDA context with `.handle` (pycuda's), which must outlive the Sampler
    size, overlap  (height, width) of images of another size than the bundle's own, as `resized` takes them
    sizes      how many sizes beside that one, asked for in calls (`sample(size=...)`), stay ready with their graphs and
               buffers. The one that was not used for longest is closed for another. Clones keep sizes of their own
    allow_links  where links among the bundle's files may end beside its own folder: a store of files (such as the Hugging
               Face cache), several, or True for any place. An open Bundle has its own

    Attributes: `bundle`, `backend`, `precision`, `threads`, `max_batch`, and `choice`, the sentence that says
    why this backend and precision. Raises BundleError, BackendError or ArgumentError.
    """

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What this bundle takes by name, beside the options of `sample`."""
        return self.bundle.manifest.inputs

    @property
    def directions(self) -> tuple[str, ...]:
        """The names that `edits` may have; none where the bundle holds no directions."""
        spec = self.bundle.manifest.directions
        return () if spec is None else spec.names

    def sample(
        self,
        n: int | None = None,
        *,
        steps: int | None = None,
        setting: str | None = None,
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
        guidance_interval: tuple[int, int] | None = None,
        variance: str | None = None,
        quantize_denoised: bool = False,
        guide_scale: float | None = None,
        guide_mode: str | None = None,
        guide_interval: tuple[int, int] | None = None,
        regularise: str | None = None,
        regularise_interval: tuple[int, int] | None = None,
        clip: bool = True,
        prior: str | None = None,
        edits: Edits | None = None,
        x_T: npt.ArrayLike | None = None,
        noise: npt.ArrayLike | None = None,
        callback: Watch | None = None,
        stop: Callable[[], object] | None = None,
        progress: bool = False,
        budget_ms: float | None = None,
        at_most: bool = False,
        anytime: bool = False,
        text: str | Sequence[str] | None = None,
        size: Size = None,
        **inputs: Any,
    ) -> Batch:
        """Sample N images.

        n          number of images; may be left out where seed (a list), x_T, noise or an input says it, else 1
        steps, timesteps, spacing, rho, method, eta, t_start
                   the few-step setting. With none of them given the bundle's recorded setting applies as
                   a whole, its scales and guidance included; naming any replaces it by ddim, uniform
                   spacing (linspace with t_start), eta 0, no t_start, scales 1, guidance 0, at the
                   recorded number of steps
        setting    "fitted", the bundle's own for this number of steps (`diffusevae fit-setting`), or "plain", as above;
                   None is the fitted one where there is one and nothing but steps is named
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
        guidance_interval
                   (low, high): the timesteps, both included, that are guided; the others cost what they do without
                   guidance. None: all
        variance   "fixedlarge", "fixedsmall" or, where the network has it, "learned_range" (ddpm); None is the bundle's own
        quantize_denoised
                   replace each step's prediction of the state by what the pipeline's `quantize` makes of it: the nearest
                   codes of a codebook; the network's eps stays what it is
        guide_scale
                   what the gradient of the bundle's guides (a classifier's, say) is multiplied by; 0 runs none. With
                   "ddim_clipped" and "ddpm"
        guide_mode "constant"; "entropy": times log K / H, H the entropy of each sample's K classes; "norm": the
                   gradient at the length of each sample's step
        guide_interval
                   (low, high): the timesteps, both included, that are guided; the others run no guide. None: all
        regularise "off"; "after": each step but the last is followed by the bundle's regulariser, a second network, which
                   predicts the clean state from the step's result and noises it afresh; "before": the state is replaced by
                   the own network's prediction noised afresh, and the regulariser takes the step. Its calls come on top of
                   steps. With "ddim", "ddim_clipped" and "ddpm"
        regularise_interval
                   (low, high): the timesteps, both included, at which it runs. None: all
        clip       limit each step's prediction of the state as the pipeline says
        prior      what the drawn input comes from: "bundle", its fitted density, or "standard", N(0, I); None is
                   the bundle's where it has one. `batch.setting.prior` says which it was
        edits      {direction: strength, or one a sample}: the drawn input, drawn or given, moves along these directions
        x_T        [N or 1, C, H, W], the unit Gaussian that the start's coefficients multiply (temperature scales
                   it)
        noise      [rows, N or 1, C, H, W] or [rows, C, H, W], in the order used; read in the rows that add noise
        callback   called with a StepInfo after each step; a true answer stops the run (`Cancelled`)
        stop       asked between steps, or every 10 ms where a backend runs all steps in one call (never on a GPU); a true
                   answer ends the run (`Cancelled`). It costs next to nothing, where a callback has each step shown
        progress   a bar on stderr once a run takes longer than two seconds
        budget_ms  milliseconds from call to images: takes the best fitted setting that keeps it in 99 of 100 runs here. The
                   first call of a size measures a few runs. `batch.deadline` says what became of it
        at_most    where none keeps the budget, take the fastest; otherwise that is a DeadlineError
        anytime    end a chain that is late with the last step's prediction of the images (`batch.deadline.done`)
        text       a text, or one a sample, in place of the token ids that it becomes; where the bundle holds a vocabulary.
                   Cut silently where it is longer than the input
        size       (height, width) of these images, with the bits of Sampler(size=...); in tiles where this Sampler has an
                   overlap. None: this Sampler's own. What has no room is refused before anything is loaded or runs
                   (HostMemoryError), and `sizes` of them stay ready
        inputs     what the bundle declares (`sampler.inputs`), by name: [N, ...], or one sample for all. One that
                   is drawn may be left out. One that is a picture may be uint8 [N, H, W, C], where a mask is 255
                   at what is to be filled in

        float inputs, x_T and noise take float32 or float64; on a GPU backend inputs and x_T may lie on the device,
        as for `sample_on_device`. Raises ArgumentError, BackendError (DeviceError among them), NumericsError or
        Cancelled.
        """
        # In the order of OPTIONS, so that the two cannot drift apart unnoticed.
        scales = (temperature, noise_scale, eps_scale)
        values = (steps, timesteps, spacing, rho, method, eta, t_start, *scales, guidance)
        more = (guidance_interval, variance, bool(quantize_denoised))
        guides = (guide_scale, guide_mode, guide_interval, regularise, regularise_interval)
        others = (setting, bool(clip), seed, x_T, noise, prior, edits, callback, stop, progress)
        named = zip(OPTIONS, (*values, *more, *guides, *others), strict=True)
        options: dict[str, Any] = {name: value for name, value in named if value is not None}
        options |= inputs if text is None else {TEXT: text, **inputs}
        budget = Budget.of(budget_ms, at_most, anytime)
        with NO_MEMORY, self._turn():
            at = self._at(size, n=n, seeds=seed)
            if budget is not None:
                return at.deadlines.sample(budget, options, n, progress)
            return at.pipeline.run(resolve.resolve_request(at.pipeline, options, "sample", n=n), progress)

    def probe(self, n: int = 1, **options: Any) -> bool:
        """Make one of the runs that the first `budget_ms` for batches of n images waits for; options as for `sample`.

        False where none is left to make. A server calls this while it has nothing else to do: a run at a time, so that a
        request waits for one at most.
        """
        with NO_MEMORY, self._turn():
            return self._deadlines.probe(options, n)

    def sample_on_device(self, n: int | None = None, *, stream: object = None, **options: Any) -> DeviceBatch:
        """As `sample`, with the results left on the GPU: arrays that torch, CuPy and pycuda take without a copy.

        inputs, x_T  may lie on the GPU too (`__cuda_array_interface__` or DLPack, C-contiguous)
        stream       what was enqueued in it until now is waited for: a number, or torch's, CuPy's or pycuda's stream.
                     None: what the arrays themselves say, else the legacy default stream
        The results are complete when this returns. The other options are those of `sample` but callback and
        progress. Only on a GPU backend.
        """
        options = resolve.taken(self._pipeline, options, REQUEST_OPTIONS, "sample_on_device")
        with NO_MEMORY, self._turn():
            chain = self._pipeline.backend.device_chain()
            if stream is not None:
                chain.wait_for(stream_handle(stream))
            request = resolve.resolve_request(self._pipeline, options, "sample_on_device", n=n)
            return self._pipeline.run_on_device(request, chain)

    def draw(self, n: int | None = None, *, seed: Seed = None, prior: str | None = None) -> Arrays:
        """The drawn input as `sample` would draw it for these seeds from this prior: {name: float32 [N, ...]}."""
        abilities.drawn_input(self.bundle.manifest, "draw")
        with NO_MEMORY, self._turn():
            seeds = noises.resolve_seeds(seed, n)
            return self._pipeline.draw(seeds, resolve.choose_prior(self.bundle.manifest, prior, draws=True))

    def interpolate(
        self,
        a: Any,
        b: Any,
        n: int = 8,
        *,
        mode: str | None = None,
        seed: Seed = None,
        prior: str | None = None,
        part: tuple[int, int] | None = None,
        size: Size = None,
        **options: Any,
    ) -> Batch:
        """n images from a to b: the drawn input z moves, x_T and the steps' noise stay those of one seed.

        In a bundle without a drawn input x_T moves, and only the steps' noise is shared.

        a, b  int seeds (z or x_T as `sample(seed=a)` draws it) or one sample of z or x_T
        mode  "lerp", z = (1 - u) a + u b for u from 0 to 1; or "slerp", along the arc between them, which keeps
              the length that Gaussian vectors have (those of N(0, I): a fitted prior has means of its own). None is
              lerp for z and slerp for x_T, whose length the network knows
        prior what the z of a seed is drawn from, as for `sample`
        seed  of the shared noise; None is a where a is a seed (the first image is then `sample(seed=a)`),
              else drawn
        part  (begin, end): only these of the n images, as range(begin, end) counts them; None for all
        The other options are those of `sample`.
        """
        with NO_MEMORY, self._turn():
            pipeline = self._at(size, n=n if part is None else None).pipeline
            request = verbs.interpolate(pipeline, (a, b), n, mode, part, {**options, "seed": seed, "prior": prior})
            return _run(pipeline, request, options)

    def path(
        self, a: Any, b: Any, n: int = 8, *, mode: str | None = None, seed: Seed = None, prior: str | None = None
    ) -> Arrays:
        """What `interpolate` samples from, as `sample` takes it: {the drawn input's name, or "x_T": float32 [n, ...],
        "seed": uint64 [n]}. It may be called while this runs in another thread."""
        return verbs.path(self._pipeline, (a, b), n, mode, None, seed, prior)[0]

    def reconstruct(self, images: npt.ArrayLike, *, size: Size = None, **options: Any) -> Batch:
        """Encode images to inputs, and sample from those, started from the noised images.

        images  uint8 [N, H, W, C] or [H, W, C], or float [N, C, H, W] in [0, 1]
        The chain starts from sqrt(alpha_bar_t) * image + sqrt(1 - alpha_bar_t) * noise at t_start; without
        one at T - 1. `batch.values` holds what the images were encoded to. The options are those of `sample`, n
        and the encoded inputs apart. Images are of the encoder's size. Where the encoder makes the state and no input
        (`encode` names one output "x"), they are encoded and decoded with no step between, and there are no options.
        """
        with NO_MEMORY, self._turn():
            pipeline = self._at(size, images=images).pipeline
            if abilities.autoencodes(pipeline.manifest):
                return verbs.autoencode(pipeline, images, options)
            return _run(pipeline, verbs.reconstruct(pipeline, images, options), options)

    def refine(
        self, images: npt.ArrayLike, *, noise_level: int | None = None, size: Size = None, **options: Any
    ) -> Batch:
        """Let the images stand for the pipeline's start value (denoise, sharpen): what the network is conditioned on.

        images  uint8 [N, H, W, C] or [H, W, C], or float [N, C, H, W] in [0, 1]: of the state's size or, where `encode`
                makes the state of an image, of the encoder's
        With t_start the chain starts from the noised image, without from x_T; "auto" is the start that the bundle's table
        (`diffusevae fit-refine`) has for images as damaged as these look, one for all. Inputs that the network takes beside
        are encoded from the images. A bundle whose pipeline has no start value needs t_start, and then only the
        start knows the image. noise_level noises the images first, as for `upscale`. The options are those of `sample`, n
        apart.
        """
        with NO_MEMORY, self._turn():
            pipeline = self._at(size, images=images).pipeline
            return _run(pipeline, verbs.refine(pipeline, images, noise_level, options), options)

    def upscale(
        self, images: npt.ArrayLike, *, noise_level: int | None = None, size: Size = None, **options: Any
    ) -> Batch:
        """One sample of each image, for a bundle whose one picture input that is: of a low resolution, say.

        images       uint8 [N, H, W, C] or [H, W, C], or float [N, C, H, W] in [0, 1], of the input's size
        noise_level  a timestep s: the network takes sqrt(alpha_bar_s) image + sqrt(1 - alpha_bar_s) noise, from a stream of
                     its own (conditioning augmentation), and the level itself where the bundle has an input for it. 0 and
                     None: the images as they are
        The options are those of `sample`, n and that input apart. `sample` takes the same picture under its name, in whose
        range floats are then: [-1, 1].
        """
        with NO_MEMORY, self._turn():
            pipeline = self._at(size, images=images).pipeline
            return _run(pipeline, verbs.upscale(pipeline, images, noise_level, options), options)

    def inpaint(
        self,
        images: npt.ArrayLike,
        masks: npt.ArrayLike,
        *,
        known_noise: npt.ArrayLike | None = None,
        composite: bool = True,
        size: Size = None,
        **options: Any,
    ) -> Batch:
        """Fill in the part of each image that its mask marks.

        A bundle that takes an image and a mask (inputs that are pictures) is handed them. Any other whose state is the
        image, or whose `encode` makes the state, is kept to what is known: before each step x is replaced outside of the
        mask by the known state, noised afresh to the step's level. Missing inputs are then encoded from the images, as by
        `refine`; with t_start the chain starts from the noised start value, or without one from the noised images.

        images       uint8 [N, H, W, C] or [H, W, C], or float [N, C, H, W] in [0, 1]
        masks        one each or one for all, of the images' size: bool or uint8 (255 is to be filled in, 0 is kept)
                     [N, H, W], [H, W] or [N, H, W, 1]; or float [N, 1, H, W] in [0, 1]. The state's is taken by nearest
        known_noise  [rows, N or 1, C, H, W] or [rows, C, H, W], what the known state is noised with, in place of the
                     seeds' own stream for it; of no use where the network takes image and mask
        composite    whether `batch.images` are the images themselves outside of the mask: there every pixel is then the
                     one that was given (a mask between 0 and 1 mixes). `batch.x` is what the chain made
        The options are those of `sample`, n apart.
        """
        with NO_MEMORY, self._turn():
            pipeline = self._at(size, images=images).pipeline
            request, holed = inpainting.inpaint(pipeline, images, masks, known_noise, options, composite=composite)
            batch = _run(pipeline, request, options)
            return replace(batch, images=inpainting.composited(batch.images, holed)) if composite else batch

    def edit(self, what: Any, edits: Edits, *, preserve: float | None = None, **options: Any) -> Batch:
        """Move what there is along the bundle's directions (`sampler.directions`), x_T and the steps' noise shared.

        what      images, as `reconstruct` takes them; seeds, one or several; or samples of the drawn input, float [N, ...]
        edits     {direction: strength, or one a sample}: 1 goes from the mean of those without to that of those with
        preserve  0 .. 1, how much of the originals is kept: the chain starts at timestep (1 - preserve) (T - 1), from the
                  noised original with the change that the edit makes to the start value. 0.9 where it is None, for
                  images; seeds and latents are then sampled as `sample(edits=...)` does, and with a number their
                  samples are edited as images are
        Without any strength an image comes back as itself, the more so the higher `preserve`; and a seed as `sample` gives
        it. The other options are those of `sample`, without n and t_start.
        """
        with NO_MEMORY, self._turn():
            return _run(self._pipeline, verbs.edit(self._pipeline, what, edits, preserve, options), options)

    def mix(self, what: Any, weights: Sequence[float] | None = None, *, seed: Seed = None, **options: Any) -> Batch:
        """One image of several: the weighted mean of their samples of the drawn input.

        what     images, seeds or samples of the drawn input, two or more, as `edit` takes them
        weights  one each, of any sum but 0, which they are divided by; None: all alike
        seed     of the noise; None is the first of the seeds where `what` is seeds, else drawn
        The other options are those of `sample`.
        """
        with NO_MEMORY, self._turn():
            request = verbs.mix(self._pipeline, what, weights, {**options, "seed": seed})
            return _run(self._pipeline, request, options)

    def estimate_damage(self, images: npt.ArrayLike) -> damage.Estimate:
        """How damaged each of the images (as `refine` takes them) looks: what t_start="auto" goes by."""
        with NO_MEMORY, self._turn():
            return damage.estimate(self._pipeline, abilities.start_pixels(self.bundle.manifest, images, "estimate_damage"))

    def encode(self, images: npt.ArrayLike, *, size: Size = None) -> Arrays:
        """What the pipeline's encoder makes of images (as `reconstruct` takes them), by value name: [N, ...] each; "x" is
        the clean state of the loop."""
        abilities.need_encoder(self.bundle.manifest, "encode")
        with NO_MEMORY, self._turn():
            pipeline = self._at(size, images=images).pipeline
            return pipeline.encode(checks.images_of(images, abilities.encoder_shape(pipeline.manifest)))

    def decode(self, value: npt.ArrayLike | None = None, **inputs: npt.ArrayLike) -> U8:
        """The start value that the pipeline makes of inputs, as pixels: uint8 [N, H, W, C].

        value: the drawn input without its name.
        """
        with NO_MEMORY, self._turn():
            return verbs.decode(self._pipeline, value, inputs)

    def warmup(self, n: int = 1, *, size: Size = None, **options: Any) -> None:
        """Load every graph and run each once at batch n (and with the options of `sample`, such as guidance).

        The first real request then pays no first-run costs. Inputs that are not drawn are taken from `options`, else
        zeros or what is nearest to them in range, of size 1 in free dimensions.
        """
        with NO_MEMORY, self._turn():
            manifest = self._at(size, n=n).pipeline.manifest
        blank = example_inputs(manifest, free=1) or {}
        if self._pipeline.text is not None and options.get("text") is not None:
            del blank[self._pipeline.text.input]
        quick = self._quick(manifest, options)
        self.sample(n, size=size, **{**quick, "seed": 0, **blank, **options})
        if manifest.pipeline.encode:
            self.encode(np.zeros((n, *abilities.encoder_shape(manifest)), np.float32), size=size)

    def _quick(self, manifest: Manifest, options: Mapping[str, Any]) -> dict[str, Any]:
        """The fewest steps that run every network of the recorded setting, unless timesteps are named."""
        if options.get("timesteps") is not None:
            return {}
        quick: dict[str, Any] = {"steps": 1, "spacing": "linspace"}
        guide, backend = manifest.guide, self._pipeline.backend
        second = manifest.regularise if backend.REGULARISES else None
        recorded = not {"method", "setting"} & options.keys()
        if recorded and "guide_scale" not in options and guide is not None and backend.GUIDES:
            quick |= {"method": manifest.defaults.method, "guide_scale": guide.scale}
        if recorded and "regularise" not in options and second is not None and second.mode != OFF:
            quick |= {"method": manifest.defaults.method, "regularise": second.mode}
        if {**quick, **options}.get("regularise") == AFTER:
            quick["steps"] = 2  # nothing comes after the last
        return quick


def _run(pipeline: Pipeline, request: Request, options: Mapping[str, Any]) -> Batch:
    return pipeline.run(request, bool(options.get("progress")))
