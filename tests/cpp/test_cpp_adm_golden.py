"""Guided diffusion in C++ against its reference implementation, with Python's bits: every chain that a model's vectors hold.

The upsampler, which has labels, an image and a learned variance, and a semantic diffusion model, or with
DIFFUSEVAE_GOLDEN=all the four and that one; in OpenVINO.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from tests import adm_models as golden
from tests.cpp import building
from tests.cpp.capi import Library, open_c
from tests.latent_runs import ALL

CHAINS = [(folder, chain) for folder, chain in golden.CHAINS if ALL or folder == "upsample"] + golden.MAPPED_CHAINS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """bundle(model): built once."""

    @functools.cache
    def build(folder: str) -> Path:
        return golden.build_adm(folder, tmp_path_factory.mktemp(folder), backends=("onnxruntime", "openvino"))

    return build


@pytest.mark.parametrize(("folder", "chain"), CHAINS)
def test_chains_equal_the_reference_and_python(
    folder: str, chain: str, bundle: Callable[[str], Path], cpp_runtimes: Path
) -> None:
    library, expected = Library(cpp_runtimes / "diffusevae" / building.LIBRARY), golden.states(folder, chain)
    given = {"x_T": golden.expected(folder)["x_T"], "noise": golden.noise(folder, chain), **golden.given(folder)}
    given |= golden.setting(folder, chain)
    with open_c(library, bundle(folder), backend="openvino") as c, Sampler(bundle(folder), "openvino", "f32", 2) as python:
        found, same = c.sample(2, seed=0, **given), python.sample(2, seed=0, **given)
    np.testing.assert_allclose(found.x, expected[max(expected)], rtol=0, atol=golden.tolerance(folder, chain))
    np.testing.assert_array_equal(found.x, same.x)
    np.testing.assert_array_equal(found.images, same.images)
