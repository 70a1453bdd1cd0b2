"""The backend, precision and most steps of a server, chosen from a bundle before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from engine.backends import BACKENDS, PRECISIONS
from engine.bundle.engines import ENGINE_FILES
from engine.bundle.manifest import Manifest
from engine.bundle.reader import Bundle
from engine.commands import command
from engine.errors import ArgumentError, BackendError, did_you_mean
from engine.pipeline import table_of
from engine.resolve import setting_of
from engine.stages import check_stages, check_vocabularies, lacks_start, place, recorded_setting

# In the order of preference. native: a sample is the same bit for bit in any batch, on any number of threads.
CPU_BACKENDS = ("native", "openvino", "onnxruntime")
GPU_BACKENDS = ("tensorrt", "tensorrt_rtx", "onnxruntime-cuda", "onnxruntime-tensorrt")
KINDS = {"cpu": CPU_BACKENDS, "gpu": GPU_BACKENDS}
MAX_STEPS = 100


def backend_for(manifest: Manifest, kind: str, asked: str | None) -> str:
    """The backend by name. Never 'auto': a server must not run on something else because a package is missing."""
    if kind not in KINDS:
        raise ArgumentError(f"kind: found {kind!r}, expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    allowed = KINDS[kind]
    usable = [name for name in allowed if name in manifest.backends and _built_for(manifest, name)]
    if asked is None:
        if not usable:
            raise BackendError(
                f"backend: found a bundle for {', '.join(manifest.backends)}, expected one for --kind {kind}: "
                f"{', '.join(allowed)}; choose another --kind, or build the bundle with --backends {allowed[0]}"
            )
        return usable[0]
    if asked not in BACKENDS:
        raise ArgumentError(
            f"backend: found {asked!r}, expected one of {', '.join(allowed)}.{did_you_mean(asked, BACKENDS)}"
        )
    if asked not in allowed:
        other = next(name for name in KINDS if name != kind)
        raise ArgumentError(
            f"backend: found {asked!r} with --kind {kind}, expected one of {', '.join(allowed)}; add --kind {other}, or "
            "choose one of these"
        )
    if asked not in usable:
        raise BackendError(
            f"backend: found {asked!r}, expected one that the bundle was built for: {', '.join(usable) or 'none'}; choose "
            f"one, or build the bundle with --backends {asked}"
        )
    return asked


def _built_for(manifest: Manifest, backend: str) -> bool:
    """Whether a backend that runs engines of its own has one of the network; the others run the bundle's graphs."""
    engines = {engine.backend for engine in manifest.engines if engine.graph == manifest.pipeline.step.graph}
    return backend not in ENGINE_FILES or backend in engines


def check_precision(bundle: Bundle, backend: str, precision: str) -> None:
    """ArgumentError for an unknown precision, BundleError for one that the bundle has no engine of."""
    choices = ("auto", *PRECISIONS)
    if precision not in choices:
        raise ArgumentError(
            f"precision: found {precision!r}, expected one of {', '.join(choices)}.{did_you_mean(precision, choices)}"
        )
    if precision != "auto" and backend in ENGINE_FILES:
        bundle.engine(backend, precision, bundle.manifest.pipeline.step.graph)


def max_steps(manifest: Manifest, asked: int | None, later: Sequence[Manifest] = ()) -> int:
    """The most calls of a network that a request may ask for; what the bundle records must be among them.

    later: the stages after the bundle's, of a cascade. The limit is one for each of them: what every stage records must be
    within it.
    """
    settings = [setting_of(manifest, {}), *(recorded_setting(*both) for both in pairwise((manifest, *later)))]
    stages = zip((manifest, *later), settings, strict=True)
    recorded = max(len(table_of(stage, stage.schedule.schedule(), setting)) for stage, setting in stages)
    most = max(recorded, *(stage.schedule.T for stage in (manifest, *later)))
    if asked is None:
        return min(most, max(MAX_STEPS, recorded))
    if not recorded <= asked <= most:
        raise ArgumentError(
            f"max_steps: found {asked}, expected {recorded} (the calls of what the bundle records, and a request without a "
            f"setting gets) to {most}, the timesteps that the model was trained with; choose another --max-steps"
        )
    return asked


def check_cascade(stages: Sequence[Bundle]) -> None:
    """What a served cascade cannot have: vocabularies of several kinds, which would read a text differently, and a stage
    that starts from an image without saying where, which a request without a setting could not have."""
    check_stages([stage.manifest for stage in stages])
    for before, after in pairwise(stages):
        if lacks_start(after.manifest, recorded_setting(before.manifest, after.manifest)):
            here, there = map(place, (before, after))
            raise ArgumentError(
                f"{here}: found that it records no t_start for {there.name}, which starts from an image, expected one for "
                f"requests that say nothing; record it, for example: {command('cascade', here, there, '--t-start', '400')}"
            )
    check_vocabularies(stages)
