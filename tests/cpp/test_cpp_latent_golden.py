"""Latent diffusion in C++ against its reference implementation, with Python's bits: every chain that a model's vectors hold.

One model, or with DIFFUSEVAE_GOLDEN=all the eight; in OpenVINO, as the library has no ONNX Runtime. And a model that takes
tokens on the native engine alone, in a library without any other runtime.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from tests import latent_models
from tests.cpp import building
from tests.cpp.capi import Library, open_c
from tests.latent_runs import ALL, RUNS, TOLERANCE, arrays, check_images, difference, setting
from tests.native_models import NEEDS_NATIVE

MODELS = latent_models.NAMES if ALL else ("class_crossattn_cfg",)
CHAINS = [(model, run) for model, run in RUNS if model in MODELS and not run.endswith("wide")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """bundle(model, backends): built once."""

    @functools.cache
    def build(model: str, *more: str) -> Path:
        return latent_models.build_latent(model, tmp_path_factory.mktemp(model), backends=("onnxruntime", *more))

    return build


@pytest.mark.parametrize(("model", "run"), CHAINS)
def test_chains_equal_the_reference_and_python(
    model: str, run: str, bundle: Callable[..., Path], cpp_runtimes: Path
) -> None:
    library, given = Library(cpp_runtimes / "diffusevae" / building.LIBRARY), {**arrays(model, run), **setting(model, run)}
    given = {name: value for name, value in given.items() if value is not None}
    path = bundle(model, "openvino")
    with open_c(library, path, backend="openvino") as c, Sampler(path, "openvino", "f32", 2) as python:
        found, same = c.sample(2, seed=0, **given), python.sample(2, seed=0, **given)
    assert difference(found.x, latent_models.expected(model)[run]) < TOLERANCE
    check_images(found.images, model, run)
    np.testing.assert_array_equal(found.x, same.x)
    np.testing.assert_array_equal(found.images, same.images)


@NEEDS_NATIVE
@pytest.mark.parametrize("model", ["text_bert_cfg"])
def test_the_native_engine_needs_no_other_runtime(model: str, bundle: Callable[..., Path], library: Library) -> None:
    path, (tokens,) = bundle(model, "native"), latent_models.given(model).values()
    options = {"steps": 3, "guidance": 2.0, "tokens": tokens}
    with open_c(library, path, backend="native") as c, Sampler(path, "native", "bf16", 2) as python:
        found, same = c.sample(2, seed=0, **options), python.sample(2, seed=0, **options)
    np.testing.assert_array_equal(found.x, same.x)
    np.testing.assert_array_equal(found.images, same.images)
