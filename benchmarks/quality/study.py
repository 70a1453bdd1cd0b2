"""The measurement of one setting: milliseconds an image at batch 1, then N images in larger batches and their scores."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.machine import BenchmarkError
from benchmarks.quality.cases import BASELINE, NOISE, VAE, Case
from benchmarks.quality.judge import U8, Judge, Progress
from benchmarks.quality.peers import PEERS, Network, chain
from engine import Sampler, kernels
from engine.commands import command, install_extra
from export.fitting.objective import CHUNK

WARMUPS, REPEATS = 2, 7  # of a batch-1 timing
FIRST_SEED = 1_000_000  # sample i is seed FIRST_SEED + i in every setting, the unconditional ones included


class Run(NamedTuple):
    """Images uint8 [N, H, W, 3], the timesteps visited, and the engine's complete setting (None: VAE alone, a peer)."""

    images: U8
    timesteps: list[int]
    setting: dict[str, Any] | None


class Study:
    """The samplers and the judge that every case shares; `noise` is `sampler`'s model with settings fitted from noise."""

    def __init__(self, sampler: Sampler, baseline: Sampler | None, noise: Sampler | None, judge: Judge) -> None:
        _check("--bundle", sampler, image=True)
        if baseline is not None:
            if refines(baseline):
                raise BenchmarkError(
                    f"--baseline {baseline.bundle.path}: found a model with a start image, expected an unconditional one; "
                    f"give this one as --bundle"
                )
            _check("--baseline", baseline, image=False)
        if noise is not None:
            _check("--noise-bundle", noise, image=False)
            if identity(noise)["graphs"] != identity(sampler)["graphs"]:
                raise BenchmarkError(
                    f"--noise-bundle {noise.bundle.path}: found another model than in {sampler.bundle.path}, expected the "
                    f"same; copy that folder and fit the copy: {_fit_noise(noise)}"
                )
        self.sampler, self.baseline, self.noise, self.judge = sampler, baseline, noise, judge

    def missing(self, case: Case) -> str | None:
        """Why a case cannot be measured; None where it can."""
        if case.peer is not None:
            if find_spec("diffusers") is None:
                return f"found no diffusers, expected it; install it with: {install_extra('benchmark')}"
            if self.sampler.bundle.manifest.pipeline.state.centre is not None:
                return "found a state around a centre, expected one around 0, as diffusers takes it"
        if case.curve == BASELINE and self.baseline is None:
            return "found no unconditional model, expected one; give it with --baseline"
        if not case.fitted:
            return None
        if case.curve == NOISE and self.noise is None:
            return "found no settings fitted from noise, expected a bundle with some; give it with --noise-bundle"
        settings = self._sampler(case).bundle.manifest.fitted
        if settings is None or settings.get(case.steps) is None:
            sampler = self._sampler(case)
            cure = _fit_noise(sampler) if case.curve == NOISE else command("fit-setting", sampler.bundle.path)
            return f"{sampler.bundle.path}: found no fitted setting of {case.steps} calls; fit some with: {cure}"
        return None

    def measure(self, case: Case, samples: int, tick: Progress) -> dict[str, Any]:
        """One row of the result. `tick` is told of every image once when it is made and once for either network."""
        started = time.perf_counter()
        runs = self.time_single(case)
        parts = []
        for first in range(0, samples, CHUNK):
            parts.append(self.run(case, seeds_of(first, min(CHUNK, samples - first))))
            tick(len(parts[-1].images))
        return {
            "key": case.key,
            "curve": case.curve,
            "kind": case.kind,
            "network_calls": case.steps,
            "t_start": case.t_start,
            "eta": case.eta,
            "prior": case.prior,
            "timesteps": parts[0].timesteps,
            "setting": parts[0].setting,
            "samples": samples,
            **self.judge.scores(np.concatenate([part.images for part in parts]), tick),
            "ms_per_image": round(statistics.median(runs), 3),
            "ms_runs": [round(run, 3) for run in runs],
            "seconds": round(time.perf_counter() - started, 1),
        }

    def time_single(self, case: Case) -> list[float]:
        """Milliseconds of REPEATS whole runs at batch 1, from seed to uint8 image, after WARMUPS that do not count.

        A peer's chain goes through the engine one call at a time; its time is that of the engine's own of as many calls.
        """
        timed = replace(case, peer=None)
        runs = []
        for index in range(WARMUPS + REPEATS):
            started = time.perf_counter()
            self.run(timed, seeds_of(index, 1))
            runs.append(1e3 * (time.perf_counter() - started))
        return runs[WARMUPS:]

    def run(self, case: Case, seeds: list[int]) -> Run:
        """The images of these seeds: the same z and x_T of a seed in every case that has them."""
        if case.curve == VAE:
            return Run(self.sampler.decode(**self.sampler.draw(seed=seeds, prior=case.prior)), [], None)
        if case.peer is not None:
            peer = next(peer for peer in PEERS if peer.name == case.peer)
            # Limited, or whole images from noise would saturate, which the engine's own chains are spared.
            x, visited = chain(peer, Network(self.sampler, seeds, clip=True), case.steps, case.t_start)
            return Run(kernels.to_uint8(np.ascontiguousarray(x, np.float32)), visited, None)
        batch = self._sampler(case).sample(seed=seeds, prior=case.prior, **case.options)
        return Run(batch.images, [int(t) for t in batch.timesteps], asdict(batch.setting))

    def seconds_per_call(self) -> float:
        """Seconds that one network call takes for one sample of a full chunk: what a run's length is estimated from."""
        self.sampler.sample(CHUNK, setting="plain", steps=1, spacing="linspace", seed=0)
        timings = self.sampler.sample(CHUNK, setting="plain", steps=2, spacing="linspace", seed=0).timings
        return timings.total_ms / 1e3 / (2 * CHUNK)

    def _sampler(self, case: Case) -> Sampler:
        given = self.baseline if case.curve == BASELINE else self.noise if case.fitted and case.curve == NOISE else None
        return given or self.sampler


def refines(sampler: Sampler) -> bool:
    """Whether a bundle's pipeline draws an image that the chain may start from, as a DiffuseVAE does."""
    return sampler.bundle.manifest.pipeline.state.start is not None


def _check(option: str, sampler: Sampler, image: bool) -> None:
    """Refuse a bundle whose fitted settings start elsewhere than the option's curve, and a refiner without a start image."""
    where = f"{option} {sampler.bundle.path}"
    if option != "--baseline" and not refines(sampler):
        raise BenchmarkError(
            f"{where}: found a model without a start image, expected a DiffuseVAE; give this one as --baseline"
        )
    fitted = sampler.bundle.manifest.fitted
    if fitted is not None and any((setting.t_start is not None) != image for setting in fitted.settings):
        starts = ("noise", "the reconstruction")
        raise BenchmarkError(
            f"{where}: found settings fitted from {starts[not image]}, expected some from {starts[image]}; "
            f"{'give this one as --noise-bundle' if image else f'fit it anew: {_fit_noise(sampler)}'}"
        )


def _fit_noise(sampler: Sampler) -> str:
    return command("fit-setting", sampler.bundle.path, "--start", "noise")


def seeds_of(first: int, count: int) -> list[int]:
    """The seeds of samples first .. first + count - 1."""
    return list(range(FIRST_SEED + first, FIRST_SEED + first + count))


def identity(sampler: Sampler) -> dict[str, Any]:
    """What a row depends on: the bundle's graphs and fitted settings, and how they run."""
    manifest = sampler.bundle.manifest
    sampling = (*manifest.pipeline.before, manifest.pipeline.rows, manifest.pipeline.step, *manifest.pipeline.after)
    digests = {call.graph: manifest.graphs[call.graph].sha256 for call in sampling}
    settings = [asdict(setting) for setting in manifest.fitted.settings] if manifest.fitted is not None else None
    return {
        "name": manifest.name,
        "prior": manifest.prior.sha256 if manifest.prior is not None else None,
        "fitted": settings and hashlib.sha256(json.dumps(settings).encode()).hexdigest(),
        "graphs": digests,
        "backend": sampler.backend,
        "precision": sampler.precision,
    }


@contextmanager
def progress(total: int, label: str) -> Iterator[Progress]:
    """A bar that vanishes when it is done."""
    with tqdm(total=total, desc=label, unit="img", leave=False, mininterval=1, disable=None) as bar:
        yield lambda count: bar.update(count) and None
