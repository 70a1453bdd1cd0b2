"""Upsamplers of published families as stages: the golden chains through `Cascade`, and a whole cascade in front of one.

Those of guided diffusion; with DIFFUSEVAE_GOLDEN=all that of latent diffusion too, whose build takes most of a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Cascade
from engine.solver.noise import stage_seeds
from engine.stages import enlarged, name_next
from tests import adm_models, latent_models, latent_runs, toy
from tests.latent_runs import ALL, difference
from tests.samplers import ANY_BACKEND


@dataclass(frozen=True)
class Golden:
    """An upsampler: how its bundle is built, its picture in [0, 1], the options of a chain, and the states it ends in."""

    build: Callable[[Path], Path]
    picture: np.ndarray
    chains: dict[str, dict[str, Any]]
    ends: dict[str, np.ndarray]
    tolerance: float  # mean difference, relative to the standard deviation of what the reference computed


def guided() -> Golden:
    """The upsampler of guided diffusion: 4 x 4 to 16 x 16, of five classes."""
    name, arrays = "upsample", adm_models.expected("upsample")
    runs = list(adm_models.config(name)["chains"])
    fixed = {"x_T": arrays["x_T"], "label": arrays["y"]}
    return Golden(
        build=lambda into: adm_models.build_adm(name, into, backends=(ANY_BACKEND,)),
        picture=(arrays["low_res"] + 1) / 2,
        chains={run: {**fixed, "noise": adm_models.noise(name, run), **adm_models.setting(name, run)} for run in runs},
        ends={run: adm_models.states(name, run)[max(adm_models.states(name, run))] for run in runs},
        tolerance=5e-5,
    )


def latent() -> Golden:
    """The super-resolution model of latent diffusion."""
    name, arrays = "sr_concat", latent_models.expected("sr_concat")
    runs = [run for model, run in latent_runs.RUNS if model == name and not run.endswith("wide")]

    def chain(run: str) -> dict[str, Any]:
        given = {**latent_runs.arrays(name, run), **latent_runs.setting(name, run)}
        return {key: value for key, value in given.items() if value is not None and key != "low_resolution"}

    return Golden(
        build=lambda into: latent_models.build_latent(name, into, backends=(ANY_BACKEND,)),
        picture=(latent_models.given(name)["low_resolution"] + 1) / 2,
        chains={run: chain(run) for run in runs},
        ends={run: arrays[run] for run in runs},
        tolerance=latent_runs.TOLERANCE,
    )


@pytest.fixture(scope="module", params=[guided, *([latent] if ALL else [])], ids=lambda golden: golden.__name__)
def golden(request: pytest.FixtureRequest) -> Golden:
    made: Golden = request.param()
    return made


@pytest.fixture(scope="module")
def cascade(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cascade]:
    """A toy of 4 x 4 images, which names the upsampler."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cascade")
    low, high = toy.build_bundle(folder / "low.bundle", image_size=4), golden.build(folder)
    name_next(low, high, steps=5)
    with Cascade(low, ANY_BACKEND, "f32", 1) as opened:
        yield opened


def test_the_golden_chains_are_those_of_the_stage(golden: Golden, cascade: Cascade) -> None:
    assert golden.chains
    for run, options in golden.chains.items():
        found = cascade.upscale(golden.picture.astype(np.float32), stages=[options])
        assert difference(found.x, golden.ends[run]) < golden.tolerance, run


def test_a_whole_cascade_is_its_parts(cascade: Cascade) -> None:
    shared = {"label": [0, 4, 2]} if any(spec.name == "label" for spec in cascade.inputs) else {}
    found = cascade.sample(3, seed=8, stages=[{"noise_level": 60}], **shared)
    assert found.stages[0].images.shape == (3, 4, 4, 3)
    assert found.images.shape[1:3] > (4, 4)
    upsampler = cascade[1]
    images = enlarged(upsampler.bundle.manifest, found.stages[0].images)
    by_hand = upsampler.upscale(images, seed=stage_seeds(found.seeds, 1), steps=5, noise_level=60, **shared)
    assert found.x.tobytes() == by_hand.x.tobytes()
