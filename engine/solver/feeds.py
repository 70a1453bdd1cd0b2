"""What goes into a bundle's whole-sampler graph (`sampler.onnx`)? Arrays by input name, for any ONNX runtime.

The graph takes what `Sampler` derives for itself: the step table, the start, the guidance weights and, where a run is to
be repeated exactly, each sample's own noise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.bundle.manifest import Manifest
from engine.bundle.prior import LatentPrior
from engine.checks import check_start, resolve_setting
from engine.errors import ArgumentError
from engine.solver import noise as noises
from engine.solver.table import Schedule, StepTable, build_step_table

Feeds = dict[str, npt.NDArray[Any]]


def step_feeds(table: StepTable, guidance: float, *, conditional: bool) -> Feeds:
    """timesteps, coefficients and start of a step table, and the weights of the network's lanes.

    guidance: eps = sum over lanes of weight * eps_lane, lane 0 with the condition and lane 1 without, so w is
    [1 + w, -w]; no guidance is [1], one lane, and costs one network call.
    """
    start = table.start
    feeds: Feeds = {
        "timesteps": np.array(table.timesteps, np.int64),
        "coefficients": np.array(table.rows, np.float32),
        "start": np.array([start.k_noise, start.k_image, start.k_cond], np.float32),
    }
    if conditional:
        feeds["guidance"] = np.array([1 + guidance, -guidance] if guidance else [1], np.float32)
    return feeds


def setting_feeds(manifest: Manifest, given: Mapping[str, Any]) -> tuple[Feeds, StepTable]:
    """The feeds of a setting, named as for `Sampler.sample` (None: the bundle's recorded one). ArgumentError otherwise."""
    model, schedule = manifest.model, manifest.schedule
    setting = resolve_setting(vars(manifest.defaults), manifest.variance, given)
    check_start(setting, conditional=model.conditional, has_image=False)
    options = dict(vars(setting))
    guidance = options.pop("guidance")
    del options["prior"]  # says what z is drawn from: the table does not depend on it
    table = build_step_table(
        Schedule(schedule.beta_1, schedule.beta_T, schedule.T, schedule.recipe), formulation=model.formulation, **options
    )
    return step_feeds(table, guidance, conditional=model.conditional), table


def noise_feeds(
    manifest: Manifest, table: StepTable, seeds: npt.NDArray[np.uint64], prior: LatentPrior | None = None
) -> Feeds:
    """z, x_T and noise of these seeds, as `Sampler.sample` draws them: with them the images are that Sampler's.

    prior: the bundle's own (`read_prior`), None for N(0, I).
    """
    model = manifest.model
    shape = (model.channels, model.image_size, model.image_size)
    feeds: Feeds = {"x_T": noises.initial(seeds, shape)}
    if model.z_dim is not None:
        feeds["z"] = noises.latent(seeds, (model.z_dim,)) if prior is None else prior.draw(seeds)
    feeds["noise"] = no_noise(len(seeds), shape)
    if table.stochastic:
        feeds["noise"] = np.stack([noises.step_noise(seeds, step, shape) for step in range(table.steps)])
    return feeds


def write_feeds(path: str | os.PathLike[str], feeds: Feeds) -> Path:
    """Write feeds as one .npz file and return its path; ArgumentError when that is impossible."""
    target = Path(path)
    if target.suffix.lower() != ".npz" or target.is_dir():
        raise ArgumentError(f"{target}: found no file name ending in .npz, expected one; numpy adds it otherwise")
    arrays: dict[str, Any] = dict(feeds)
    try:
        np.savez(target, **arrays)
    except OSError as error:
        raise ArgumentError(
            f"{target}: found that it cannot be written ({error.strerror or error}), expected a place that can; choose one"
        ) from error
    return target


def no_noise(n: int, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """What a solver that adds no noise takes as `noise`: one slice for all steps."""
    return np.zeros((1, n, *shape), np.float32)
