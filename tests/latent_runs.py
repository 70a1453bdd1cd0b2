"""The runs of the golden vectors of latent diffusion (tests/golden_ldm): what each was asked for, and what came out.

What is compared is the mean difference, relative to the standard deviation of what the reference computed
(tests/golden_ldm/README.md says why).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tests import latent_models

TOLERANCE = 5e-5
SPACINGS = {"uniform": "leading", "quad": "leading_quad"}
# Of the reference alone: a chain begun amid its noise (its timesteps are in test_solver_timesteps.py). Chains in tiles and
# over part of the image have tests of their own (tests/integration/test_latent_golden.py).
OTHER = ("last", "tiled", "blend")
# A build takes most of a minute. These three have every kind of block and of condition; DIFFUSEVAE_GOLDEN=all: all eight.
FEW = ("class_crossattn_cfg", "text_bert_cfg", "inpaint_concat")
ALL = os.environ.get("DIFFUSEVAE_GOLDEN") == "all"
MODELS = latent_models.NAMES if ALL else FEW
RUNS = [
    (model, run)
    for model in MODELS
    for run, of in latent_models.config(model)["runs"].items()
    if not any(of.get(option) or run.endswith(option) for option in OTHER)
]


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
