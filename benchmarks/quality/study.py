"""The measurement of one setting: milliseconds an image at batch 1, then N images in larger batches and their distance."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.machine import BenchmarkError
from benchmarks.quality.cases import BASELINE, VAE, Case
from engine import Sampler
from export.fitting.features import DEFAULT, NETWORKS, EfficientNet, Features
from export.fitting.frechet import Moments, frechet_distance, moments

U8 = npt.NDArray[np.uint8]
Progress = Callable[[int], object]

NETWORK = NETWORKS[DEFAULT]
METRIC = f"FD ({NETWORK.title})"
WARMUPS, REPEATS = 2, 7  # of a batch-1 timing
CHUNK = 64  # images sampled at a time
FIRST_SEED = 1_000_000  # sample i is seed FIRST_SEED + i in every setting, the unconditional ones included


class Study:
    """The samplers, the extractor and the held-out images' moments: all that every case shares."""

    def __init__(self, sampler: Sampler, baseline: Sampler | None, features: Features, reference: Moments) -> None:
        if not refines(sampler):
            raise BenchmarkError(
                f"--bundle {sampler.bundle.path}: found a model without a start image, expected a DiffuseVAE; "
                f"give this one as --baseline"
            )
        if baseline is not None and refines(baseline):
            raise BenchmarkError(
                f"--baseline {baseline.bundle.path}: found a model with a start image, expected an unconditional one; "
                f"give this one as --bundle"
            )
        self.sampler, self.baseline = sampler, baseline
        self.features, self.reference = features, reference

    def has(self, case: Case) -> bool:
        """Whether the bundle that a case needs was given."""
        return case.curve != BASELINE or self.baseline is not None

    def measure(self, case: Case, samples: int, tick: Progress) -> dict[str, Any]:
        """One row of the result. `tick` is told how many images were made."""
        started = time.perf_counter()
        runs = self.time_single(case)
        parts: list[npt.NDArray[np.float32]] = []
        for first in range(0, samples, CHUNK):
            images = self.images(case, seeds_of(first, min(CHUNK, samples - first)))
            parts.append(self.features(images))
            tick(len(images))
        distance = frechet_distance(self.reference, moments(np.concatenate(parts)))
        return {
            "key": case.key,
            "curve": case.curve,
            "steps": case.steps,
            "network_calls": case.network_calls,
            "plain": case.plain,
            "setting": case.setting() if case.steps else None,
            "prior": case.prior,
            "timesteps": self.timesteps(case),
            "samples": samples,
            "fd": round(distance, 3),
            "ms_per_image": round(statistics.median(runs), 3),
            "ms_runs": [round(run, 3) for run in runs],
            "seconds": round(time.perf_counter() - started, 1),
        }

    def time_single(self, case: Case) -> list[float]:
        """Milliseconds of REPEATS whole runs at batch 1, from seed to uint8 image, after WARMUPS that do not count."""
        runs = []
        for index in range(WARMUPS + REPEATS):
            started = time.perf_counter()
            self.images(case, seeds_of(index, 1))
            runs.append(1e3 * (time.perf_counter() - started))
        return runs[WARMUPS:]

    def images(self, case: Case, seeds: list[int]) -> U8:
        """The images of these seeds, uint8 [N, H, W, 3]: the same z and x_T of a seed in every case that has them."""
        if case.curve == VAE:
            return self.sampler.decode(**self.sampler.draw(seed=seeds, prior=case.prior))
        return self._sampler(case).sample(seed=seeds, prior=case.prior, **case.setting()).images

    def timesteps(self, case: Case) -> list[int]:
        """The timesteps that a case visits, in order."""
        if case.curve == VAE:
            return []
        return [int(t) for t in self._sampler(case).sample(1, seed=0, **case.setting()).timesteps]

    def seconds_per_call(self) -> float:
        """Seconds that one network call takes for one sample of a full chunk: what a run's length is estimated from."""
        self.sampler.sample(CHUNK, steps=1, spacing="linspace", seed=0)
        timings = self.sampler.sample(CHUNK, steps=2, spacing="linspace", seed=0).timings
        return timings.total_ms / 1e3 / (2 * CHUNK)

    def _sampler(self, case: Case) -> Sampler:
        if case.curve != BASELINE:
            return self.sampler
        if self.baseline is None:
            raise BenchmarkError(f"{case.key}: found no baseline bundle, expected one; give it with --baseline")
        return self.baseline


def refines(sampler: Sampler) -> bool:
    """Whether a bundle's pipeline draws an image that the chain may start from, as a DiffuseVAE does."""
    return sampler.bundle.manifest.pipeline.state.start is not None


def seeds_of(first: int, count: int) -> list[int]:
    """The seeds of samples first .. first + count - 1."""
    return list(range(FIRST_SEED + first, FIRST_SEED + first + count))


def floors(
    heldout: U8, train: U8 | None, samples: int, features: Features, tick: Progress
) -> tuple[Moments, list[dict[str, Any]]]:
    """The held-out images' moments, and the distances that even perfect samples would have.

    Two disjoint halves of the held-out images against each other; and, where training images are given, as many of them as
    there will be samples against all held-out images: the same two counts, hence the same bias, as every setting.
    """
    seen = extract(features, heldout, tick)
    half = len(seen) // 2
    rows = [
        {
            "between": "two halves of the held-out images",
            "counts": [half, half],
            "fd": round(frechet_distance(moments(seen[:half]), moments(seen[half : 2 * half])), 3),
        }
    ]
    reference = moments(seen)
    if train is not None:
        picked = train[: min(samples, len(train))]
        rows.append(
            {
                "between": "training images and all held-out images",
                "counts": [len(picked), len(seen)],
                "fd": round(frechet_distance(reference, moments(extract(features, picked, tick))), 3),
            }
        )
    return reference, rows


def extract(features: Features, images: U8, tick: Progress) -> npt.NDArray[np.float32]:
    """Features of all images, chunk by chunk."""
    parts = []
    for begin in range(0, len(images), CHUNK):
        parts.append(features(images[begin : begin + CHUNK]))
        tick(len(parts[-1]))
    return np.concatenate(parts)


def open_extractor(threads: int) -> EfficientNet:
    """The extractor of the metric; a function of its own so that tests can measure with a cheaper one."""
    return EfficientNet(NETWORK, threads)


def identity(sampler: Sampler) -> dict[str, Any]:
    """What a row depends on: the bundle's graphs and how they run."""
    manifest = sampler.bundle.manifest
    sampling = (*manifest.pipeline.before, manifest.pipeline.rows, manifest.pipeline.step, *manifest.pipeline.after)
    digests = {call.graph: manifest.graphs[call.graph].sha256 for call in sampling}
    return {
        "name": manifest.name,
        "prior": manifest.prior.sha256 if manifest.prior is not None else None,
        "graphs": digests,
        "backend": sampler.backend,
        "precision": sampler.precision,
    }


@contextmanager
def progress(total: int, label: str) -> Iterator[Progress]:
    """A bar that vanishes when it is done."""
    with tqdm(total=total, desc=label, unit="img", leave=False, mininterval=1, disable=None) as bar:
        yield lambda count: bar.update(count) and None
