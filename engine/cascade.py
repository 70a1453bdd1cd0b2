"""`Cascade`: bundles one behind the other, each of which goes on with the images of the one before it.

Every stage is a Sampler of its own. One that takes exactly one picture (an upsampler) is handed the images as that; any
other is given them to start from, image to image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine import abilities, resolve, stages, verbs
from engine.bundle.inputs import InputSpec
from engine.bundle.links import AllowLinks
from engine.bundle.reader import Bundle
from engine.cleanup import NO_MEMORY, run_all, undo
from engine.errors import ArgumentError, did_you_mean
from engine.request import Request
from engine.resolve import OPTIONS
from engine.result import Batch, StepInfo, Timings
from engine.sampler import Sampler, Seed
from engine.solver import noise as noises
from engine.solver.noise import Seeds
from engine.text import TEXT

if TYPE_CHECKING:
    from typing_extensions import Self

BundlePath = str | os.PathLike[str]
Options = Mapping[str, Any]
WATCHED = ("callback", "stop", "progress")  # of the whole cascade, whichever stage runs
NOISE_LEVEL = "noise_level"
BUDGETS = ("budget_ms", "at_most", "anytime")


@dataclass(frozen=True)
class CascadeBatch(Batch):
    """The batch of the last stage, with the seeds of the cascade and the times of all stages summed.

    stages  the batch of every stage, the last too: its `seeds` are that stage's own, from which it alone comes again
    """

    stages: tuple[Batch, ...] = ()


class Cascade:
    """Two or more bundles, the images of each the next one's low resolution; serves one thread at a time.

    bundles  open Samplers (which stay the caller's), paths or Bundles, from the smallest images to the largest; or one path
             or Bundle that names the bundle after it (`diffusevae cascade`), which is followed
    The other arguments are those of a Sampler, for what is opened here.

    Attributes: `samplers`. Raises CascadeError where the bundles do not fit, and what a Sampler raises.
    """

    def __init__(
        self,
        bundles: BundlePath | Bundle | Sequence[BundlePath | Bundle | Sampler],
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        *,
        max_batch: int = 64,
        device: object = None,
        allow_links: AllowLinks = False,
    ) -> None:
        opened = _opened(bundles, allow_links)
        stages.check_stages([stage.bundle.manifest if isinstance(stage, Sampler) else stage.manifest for stage in opened])
        self._own: list[Sampler] = []
        found: list[Sampler] = []
        with undo(self.close):
            for stage in opened:
                if not isinstance(stage, Sampler):
                    stage = Sampler(stage, backend, precision, threads, max_batch=max_batch, device=device)
                    self._own.append(stage)
                found.append(stage)
        self.samplers = tuple(found)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What `sample` takes by name, beside its options: what the stages declare, but the pictures that they hand on."""
        return stages.all_inputs([sampler.bundle.manifest for sampler in self.samplers])

    @property
    def bundle(self) -> Bundle:
        """The first stage's."""
        return self.samplers[0].bundle

    @property
    def backend(self) -> str:
        """The first stage's."""
        return self.samplers[0].backend

    @property
    def precision(self) -> str:
        """The first stage's."""
        return self.samplers[0].precision

    @property
    def threads(self) -> int:
        """The first stage's."""
        return self.samplers[0].threads

    def sample(
        self, n: int | None = None, *, seed: Seed = None, stages: Sequence[Options] | None = None, **options: Any
    ) -> CascadeBatch:
        """Sample N images through all stages.

        n, seed  as for `Sampler.sample`. Sample k has one seed, which is the first stage's, and from which those of the
                 others come: its images are the same in any batch, and those of a stage whatever stages follow
        stages   the options of each stage after the first, as `Sampler.upscale` or `Sampler.refine` takes them (steps,
                 t_start, noise_level, inputs, ...), over those that the bundle before it records
        options  of the first stage, as for `Sampler.sample`; inputs by name, and text, go to every stage that takes them
        callback, stop and progress are for all stages; `StepInfo.stage` says which. There is no budget of time.
        """
        shared = self._checked(options, "sample")
        begun = perf_counter()
        first = {**self._inputs_of(0, shared, {}), **{name: value for name, value in options.items() if name in OPTIONS}}
        request = self._request(n, seed, first)
        plan = self._plan(stages, shared, options, len(request))
        with NO_MEMORY, self.samplers[0]._turn():
            batch = self.samplers[0]._pipeline.run(request, bool(options.get("progress")))
        made = [batch, *self._later(batch.images, batch.seeds, plan)]
        return _joined(made, batch.seeds, 1e3 * (perf_counter() - begun))

    def upscale(
        self, images: npt.ArrayLike, *, seed: Seed = None, stages: Sequence[Options] | None = None, **options: Any
    ) -> CascadeBatch:
        """The stages after the first alone, on images that are there.

        images  uint8 [N, H, W, C] or [H, W, C], or float [N, C, H, W] in [0, 1], of the second stage's size or smaller
        seed    of the cascade: with images of the first stage and their seeds, the results are those of `sample`
        stages  as for `sample`; options: inputs that several stages take, text, callback, stop and progress
        """
        if given := [name for name in options if name in OPTIONS and name not in WATCHED]:
            raise ArgumentError(
                f"upscale was given {', '.join(given)}, which is of the stage that made the images; expected options of the "
                "others. Pass them in stages."
            )
        shared = self._checked(options, "upscale")
        begun, shape = perf_counter(), np.shape(images)
        seeds = noises.resolve_seeds(seed, shape[0] if len(shape) == 4 else 1)
        plan = self._plan(stages, shared, options, len(seeds))
        made = list(self._later(images, seeds, plan))
        return _joined(made, seeds, 1e3 * (perf_counter() - begun))

    def warmup(self, n: int = 1) -> None:
        """Load every graph of every stage and run each once at batch n."""
        for sampler in self.samplers:
            sampler.warmup(n)

    def clone(self) -> Self:
        """A cascade over the same weights with states and buffers of its own, for another thread."""
        twin = object.__new__(type(self))
        twin._own = []
        with undo(twin.close):
            for sampler in self.samplers:
                twin._own.append(sampler.clone())
        twin.samplers = tuple(twin._own)
        return twin

    def close(self) -> None:
        """Free what was opened here; Samplers that were handed over stay open."""
        run_all([sampler.close for sampler in self._own])

    def __len__(self) -> int:
        return len(self.samplers)

    def __getitem__(self, stage: int) -> Sampler:
        return self.samplers[stage]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{', '.join(map(repr, self.samplers))}])"

    # ---- a run -------------------------------------------------------------------------------------------------------

    def _request(self, n: int | None, seed: Seed, first: Options) -> Request:
        """That of the first stage; refuses what it cannot have."""
        sampler = self.samplers[0]
        with NO_MEMORY, sampler._turn():
            return resolve.resolve_request(sampler._pipeline, {**first, "seed": seed}, "sample", n=n)

    def _plan(self, given: Sequence[Options] | None, shared: Options, options: Options, n: int) -> list[dict[str, Any]]:
        """The options of each stage after the first, complete but for the seeds; what a stage cannot have for n images is
        refused before any runs."""
        plan = []
        for index, own in enumerate(self._per_stage(given), 1):
            before, manifest = (self.samplers[stage].bundle.manifest for stage in (index - 1, index))
            run = stages.merged(stages.recorded(before, manifest), dict(own))
            run = {**self._inputs_of(index, shared, run), **_watched(options, index), **run}
            _check_stage(self.samplers[index], index, n, run)
            plan.append(run)
        return plan

    def _later(self, images: Any, seeds: Seeds, plan: Sequence[Options]) -> Iterator[Batch]:
        """The batches of the stages after the first."""
        for index, options in enumerate(plan, 1):
            sampler = self.samplers[index]
            manifest = sampler.bundle.manifest
            run = {"seed": noises.stage_seeds(seeds, index), **options}
            verb = sampler.upscale if abilities.upscales(manifest) else sampler.refine
            batch = verb(stages.enlarged(manifest, images), **run)
            images = batch.images
            yield batch

    def _per_stage(self, given: Sequence[Options] | None) -> Sequence[Options]:
        """The options of each stage after the first."""
        later = len(self) - 1
        if given is None:
            return [{}] * later
        if isinstance(given, Mapping) or len(given) != later or not all(isinstance(one, Mapping) for one in given):
            raise ArgumentError(
                f"stages is {given!r}; expected a list of {later}, the options of each stage after the first: "
                f"[{', '.join(['{...}'] * later)}]."
            )
        return given

    def _checked(self, options: Options, where: str) -> dict[str, Any]:
        """The inputs among the options; ArgumentError for a name that no stage knows."""
        if budgets := [name for name in BUDGETS if options.get(name)]:
            raise ArgumentError(
                f"{where} of a cascade was given {budgets[0]}, which chooses among one bundle's settings; expected none. "
                "Leave it out, and choose steps."
            )
        names = [*(spec.name for spec in self.inputs), *([TEXT] if any(map(_reads, self.samplers)) else [])]
        shared = {name: value for name, value in options.items() if name not in (*OPTIONS, *BUDGETS)}
        for name in shared:
            if name not in names:
                raise ArgumentError(
                    f"{where} has no option {name!r}, and no stage of this cascade has such an input: they take "
                    f"{', '.join(names) or 'none'}.{did_you_mean(name, (*OPTIONS, *names))}"
                )
        return {name: value for name, value in shared.items() if value is not None}

    def _inputs_of(self, index: int, shared: Options, own: Options) -> dict[str, Any]:
        """What of the shared inputs a stage takes; text and the tokens that it becomes count as one, its own first."""
        sampler = self.samplers[index]
        names = {spec.name for spec in stages.inputs_of(sampler.bundle.manifest, index)}
        text = sampler.bundle.manifest.text
        if text is not None:
            names.add(TEXT)
            if any(own.get(name) is not None for name in (TEXT, text.input)):
                names -= {TEXT, text.input}
        return {name: value for name, value in shared.items() if name in names}


def _check_stage(sampler: Sampler, index: int, n: int, run: Options) -> None:
    """Refuse what a stage's own verb would refuse for n images; the refusal says which stage it is of."""
    options = {name: value for name, value in run.items() if name != NOISE_LEVEL}
    try:
        with NO_MEMORY, sampler._turn():
            verbs.check_stage(sampler._pipeline, n, run.get(NOISE_LEVEL), options)
    except ArgumentError as error:
        raise ArgumentError(f"stage {index + 1}: {error}") from error


def _reads(sampler: Sampler) -> bool:
    return sampler.bundle.manifest.text is not None


def _opened(bundles: Any, allow_links: AllowLinks) -> list[Bundle | Sampler]:
    """The bundles of a cascade, open; Samplers as they are."""
    if isinstance(bundles, (str, os.PathLike, Bundle)):
        return list(stages.followed(_bundle(bundles, allow_links), allow_links))
    return [stage if isinstance(stage, Sampler) else _bundle(stage, allow_links) for stage in bundles]


def _bundle(given: BundlePath | Bundle, allow_links: AllowLinks) -> Bundle:
    return given if isinstance(given, Bundle) else Bundle.open(given, allow_links)


def _watched(options: Options, stage: int) -> dict[str, Any]:
    """callback, stop and progress for a stage after the first."""
    found = {name: options[name] for name in WATCHED if options.get(name) is not None}
    if callback := found.get("callback"):

        def watch(info: StepInfo) -> object:
            return callback(replace(info, stage=stage))

        found["callback"] = watch
    return found


def _joined(made: Sequence[Batch], seeds: Seeds, took_ms: float) -> CascadeBatch:
    """The last of the batches with the times of all; the whole is what the clock says, with what lies between stages."""
    timings = Timings()
    for batch in made:
        timings.add(batch.timings)
    timings.total_ms = took_ms
    last = {field.name: getattr(made[-1], field.name) for field in fields(Batch)}
    return CascadeBatch(**{**last, "seeds": seeds.copy(), "timings": timings}, stages=tuple(made))
