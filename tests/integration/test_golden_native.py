"""The native engine in bf16 against the reference implementation: every golden model on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from tests.golden_models import NAMES, expected
from tests.integration.test_golden import latent
from tests.native_models import NEEDS_NATIVE, PATHS

pytestmark = NEEDS_NATIVE

# Relative, in the L2 norm: x after one of ten steps, which takes eps times a large factor from x_T; mean and decoded image.
FIRST_STEP, VAE = 0.03, 0.015

NativeBundle = Callable[..., Path]
ForceIsa = Callable[[str], str]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", NAMES)
def test_the_first_step_stays_within_its_tolerance(
    case: str, path: str, native_bundle: NativeBundle, force_isa: ForceIsa
) -> None:
    known, bundle = expected(case), native_bundle(case)
    force_isa(path)
    with Sampler(bundle, backend="native", precision="bf16", threads=2) as sampler:
        states: list[np.ndarray] = []
        batch = sampler.sample(
            seed=0, **latent(known), x_T=known["x_T"], steps=10, spacing="uniform",
            callback=lambda info: states.append(info.x.copy()),
        )  # fmt: skip
    assert relative(states[0], known["ddim_uniform_10_g0.0_step1"]) <= FIRST_STEP
    assert np.isfinite(batch.x).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", [name for name in NAMES if name != "uncond"])
def test_the_vae_stays_within_its_tolerance(case: str, path: str, native_bundle: NativeBundle, force_isa: ForceIsa) -> None:
    known, bundle = expected(case), native_bundle(case)
    force_isa(path)
    with Sampler(bundle, backend="native", precision="bf16", threads=1) as sampler:
        encoded = sampler.encode(known["img"])
        decoded = sampler.decode(known["z"])
    assert relative(encoded["z"], known["vae_mu"][:, :, 0, 0]) <= VAE
    assert relative(encoded["z_logvar"], known["vae_logvar"][:, :, 0, 0]) <= VAE
    image = np.clip(known["vae_decode"], 0, 1).transpose(0, 2, 3, 1)
    assert relative(decoded / 255, image) <= VAE


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
