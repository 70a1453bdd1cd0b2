"""Input arrays of a bundle's whole-sampler graph (`sampler.onnx`) by name, for any ONNX runtime.

The graph takes what `Sampler` derives for itself: the step table with its start and weights and, where a run is to be
repeated exactly, each sample's own inputs, x_T and noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle.inputs import EACH_STEP
from engine.bundle.manifest import Manifest
from engine.bundle.prior import Prior
from engine.bundle.whole import GUIDE_MODE, NETS
from engine.checks import input_of
from engine.errors import ArgumentError
from engine.pipeline import table_of
from engine.places import check_file
from engine.resolve import setting_of
from engine.solver import noise as noises
from engine.solver.feeds import Feeds, nets_of, no_noise, step_feeds
from engine.solver.guides import MODES
from engine.solver.table import StepTable

__all__ = ["Feeds", "no_noise", "noise_bytes", "noise_feeds", "setting_feeds", "step_feeds", "write_feeds"]


def setting_feeds(manifest: Manifest, given: Mapping[str, Any]) -> tuple[Feeds, StepTable]:
    """The feeds of a setting, named as for `Sampler.sample` (None: the bundle's recorded one). ArgumentError otherwise."""
    setting = setting_of(manifest, given)
    if setting.quantize_denoised:
        raise ArgumentError("quantize_denoised is given, which a whole-sampler graph has no operations for. Leave it out.")
    table = table_of(manifest, manifest.schedule.schedule(), setting)
    feeds = step_feeds(table)
    if manifest.pipeline.guides:
        feeds[GUIDE_MODE] = np.array([MODES.index(setting.guide_mode)], np.int64)
    if manifest.pipeline.regulariser is not None:
        feeds[NETS] = nets_of(table)
    return feeds, table


def noise_bytes(manifest: Manifest, table: StepTable, n: int) -> int:
    """How many bytes `noise_feeds` makes for n samples whose inputs are drawn; those that are given come on top."""
    noise = (1 + (len(table) if table.stochastic else 0)) * math.prod(manifest.pipeline.state.shape)
    drawn = 0 if manifest.drawn is None else math.prod(map(int, manifest.drawn.sample))
    fresh = 0 if manifest.fresh is None else len(table) * math.prod(map(int, manifest.fresh.sample[1:]))
    return 4 * n * (noise + drawn + fresh)


def noise_feeds(
    manifest: Manifest,
    table: StepTable,
    seeds: npt.NDArray[np.uint64],
    prior: Prior | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Feeds:
    """The inputs, x_T and noise of these seeds, as `Sampler.sample` takes and draws them: with them the images are that
    Sampler's.

    prior: the bundle's own (`read_prior`), None for N(0, I). inputs: those that are given, by name, one for all or one a
    seed; ArgumentError where one is missing that is not drawn.
    """
    n, pipeline = len(seeds), manifest.pipeline
    shape = pipeline.state.shape
    feeds: Feeds = {"x_T": noises.initial(seeds, shape), "noise": no_noise(n, shape)}
    if table.stochastic:
        feeds["noise"] = np.empty((len(table), n, *shape), np.float32)
        for row, noise in enumerate(feeds["noise"]):
            noises.step_noise(seeds, row, shape, noise)
    read = pipeline.inputs_for(pipeline.run_values(guided=table.takes_guide), frozenset())
    for spec in manifest.inputs:
        given = (inputs or {}).get(spec.name)
        if given is not None:
            feeds[spec.name] = _for_each(input_of(spec, given), n, spec.name)
        elif spec.draw is None and pipeline.guides and spec.name not in read:
            feeds[spec.name] = np.zeros((n, *map(int, spec.sample)), spec.dtype)  # for guides, of which no row takes one
        elif spec.draw is None:
            raise ArgumentError(f"{spec.name}: found none, expected it, because it is not drawn: {spec}. Pass it by name")
        elif spec.draw == EACH_STEP:
            feeds[spec.name] = noises.fresh(seeds, len(table), tuple(map(int, spec.sample[1:])))
        elif prior is not None:
            feeds[spec.name] = prior.draw(seeds).reshape(n, *map(int, spec.sample))
        else:
            feeds[spec.name] = noises.drawn(seeds, tuple(map(int, spec.sample)))
    return feeds


def _for_each(array: npt.NDArray[Any], n: int, name: str) -> npt.NDArray[Any]:
    if len(array) not in (1, n):
        raise ArgumentError(f"{name} holds {len(array)} samples; expected {n}, one a seed, or 1 for all")
    return np.array(np.broadcast_to(array, (n, *array.shape[1:])))


def write_feeds(path: str | os.PathLike[str], feeds: Feeds) -> Path:
    """Write feeds as one .npz file and return its path; ArgumentError when that is impossible."""
    arrays: dict[str, Any] = dict(feeds)
    target = check_file(path, sum(array.nbytes for array in feeds.values()), (".npz",))  # numpy adds the suffix otherwise
    try:
        np.savez(target, **arrays)
    except OSError as error:
        raise ArgumentError(
            f"{target}: found that it cannot be written ({error.strerror or error}), expected a place that can; choose one"
        ) from error
    return target
