"""Latent diffusion against its reference implementation: from a CompVis checkpoint and its YAML to latents and images.

Every sampler that the vectors of tests/golden_ldm hold, in every runtime. What is compared is the mean
difference, relative to the standard deviation of what the reference computed (tests/golden_ldm/README.md says why).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler, StepInfo
from engine.bundle.reader import Bundle
from engine.feeds import noise_feeds, setting_feeds
from tests import latent_models
from tests.sampler_graphs import OrtSampler
from tests.samplers import EACH_BACKEND

TOLERANCE = 5e-5
SPACINGS = {"uniform": "leading", "quad": "leading_quad"}
# Of the reference alone: a chain begun amid its noise (its timesteps are in test_solver_timesteps.py), the network in tiles;
# and chains over part of the image, which are those of `inpaint`.
OTHER = ("last", "tiled", "blend")
# A build takes most of a minute. These three have every kind of block and of condition; DIFFUSEVAE_GOLDEN=all: all eight.
FEW = ("class_crossattn_cfg", "text_bert_cfg", "inpaint_concat")
MODELS = latent_models.NAMES if os.environ.get("DIFFUSEVAE_GOLDEN") == "all" else FEW
RUNS = [
    (model, run)
    for model in MODELS
    for run, of in latent_models.config(model)["runs"].items()
    if not any(of.get(option) or run.endswith(option) for option in OTHER)
]
Bundles = Callable[..., Path]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """bundles(model, size): the bundle of a golden model, with its whole-sampler graph."""
    import torch

    from export.graphs.extra import GraphOptions

    torch.set_num_threads(1)

    @functools.cache
    def build(model: str, size: tuple[int, int] | None = None) -> Path:
        whole, folder = GraphOptions(whole_sampler=True), tmp_path_factory.mktemp(model)
        return latent_models.build_latent(model, folder, size, backends=("onnxruntime", "openvino"), graph_options=whole)

    return build


@pytest.fixture(scope="module")
def samplers(bundles: Bundles) -> Iterator[Callable[..., Sampler]]:
    """samplers(backend, model, size): opened once."""
    opened: dict[Any, Sampler] = {}

    def get(backend: str, *which: Any) -> Sampler:
        key = (backend, *which)
        if key not in opened:
            opened[key] = Sampler(bundles(*which), backend, "f32", threads=1)
        return opened[key]

    yield get
    for sampler in opened.values():
        sampler.close()


def setting(model: str, run: str) -> dict[str, Any]:
    """The options of `sample` that a run stands for."""
    of = latent_models.config(model)["runs"][run]
    if of["sampler"] == "ddpm":
        return {"method": "ddpm", "spacing": "truncated", "steps": of["S"] if "S" in of else of["steps"]}
    scale = 0.5 if run.endswith("temp0.5") else 1.0
    options = {"method": of["sampler"], "spacing": SPACINGS[of["spacing"]], "steps": of["S"], "eta": of["eta"]}
    quantized = bool(of.get("quantize_x0"))
    return options | {"guidance": of["scale"] - 1, "noise_scale": scale, "quantize_denoised": quantized}


def arrays(model: str, run: str) -> dict[str, Any]:
    """Start, noise and conditions of a run."""
    expected = latent_models.expected(model)
    x_T = expected["x_T_wide" if run.endswith("wide") else "x_T"]
    return {"x_T": x_T, "noise": expected.get(f"{run}_noise"), **latent_models.given(model)}


def which(model: str, run: str) -> tuple[Any, ...]:
    if not run.endswith("wide"):
        return (model,)
    height, width = latent_models.expected(model)["x_T_wide"].shape[2:]
    return model, (4 * height, 4 * width)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).mean() / expected.std())


def check_images(images: np.ndarray, model: str, run: str) -> None:
    """What was decoded, to the level of 255 that rounding may tip over."""
    expected = latent_models.expected(model)
    wanted = expected.get(f"{run}_composite")
    if wanted is None and f"{run}_decode" in expected:
        wanted = (expected[f"{run}_decode"] + 1) / 2
    if wanted is not None:
        levels = np.rint(255 * wanted.clip(0, 1)).transpose(0, 2, 3, 1)
        assert np.abs(images.astype(int) - levels).max() <= 1


@EACH_BACKEND
@pytest.mark.parametrize(("model", "run"), RUNS)
def test_chains_equal_the_reference(backend: str, model: str, run: str, samplers: Callable[..., Sampler]) -> None:
    of, expected, states = latent_models.config(model)["runs"][run], latent_models.expected(model), []

    def keep(info: StepInfo) -> None:
        states.append(info.x.copy())

    sampler = samplers(backend, *which(model, run))
    batch = sampler.sample(2, seed=0, callback=keep, **arrays(model, run), **setting(model, run))
    extra = of["calls"] - of["steps"]  # PLMS begins with two calls
    assert len(batch.timesteps) == of["calls"]
    assert difference(states[extra], expected[f"{run}_step1"]) < TOLERANCE
    assert difference(states[of["steps"] // 2 - 1 + extra], expected[f"{run}_mid"]) < TOLERANCE
    assert difference(batch.x, expected[run]) < TOLERANCE
    check_images(batch.images, model, run)


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_sampler_as_one_graph(model: str, bundles: Bundles) -> None:
    run = next(run for of, run in RUNS if of == model and not run.endswith("qx0"))
    bundle, given = Bundle.open(bundles(model)), arrays(model, run)
    noise, x_T = given.pop("noise"), given.pop("x_T")
    feeds, table = setting_feeds(bundle.manifest, setting(model, run))
    feeds |= noise_feeds(bundle.manifest, table, np.array([0, 1], np.uint64), None, given)
    feeds["x_T"] = x_T
    if noise is not None:
        feeds["noise"] = noise
    found = OrtSampler(bundle.read_graph("sampler"))(feeds)
    assert difference(found["x"], latent_models.expected(model)[run]) < TOLERANCE
