"""Guided diffusion in C++ against its reference implementation, with Python's bits: every chain that a model's vectors hold.

The upsampler, which has labels, an image and a learned variance, and a semantic diffusion model, or with
DIFFUSEVAE_GOLDEN=all the four and that one; in OpenVINO, and with a label map on the native engine too. And chains that a
classifier or PPAP's experts guide: one of four kinds or all, in both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from engine.backends.native.backend import Native
from engine.bundle.reader import Bundle
from tests import adm_guides as guided
from tests import adm_models as golden
from tests.cpp import building
from tests.cpp.capi import Failed, Library, open_c
from tests.latent_runs import ALL
from tests.manifests import edit

CHAINS = [(folder, chain) for folder, chain in golden.CHAINS if ALL or folder == "upsample"] + golden.MAPPED_CHAINS
NATIVE = Native.available()[0]
GUIDED = [(folder, chain) for folder, chain in guided.ALL_CHAINS if ALL or folder == "guided_adaptive"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """bundle(model): built once."""

    @functools.cache
    def build(folder: str) -> Path:
        backends = ("onnxruntime", "openvino", *(["native"] if NATIVE and folder == golden.MAPPED else []))
        path = golden.build_adm(folder, tmp_path_factory.mktemp(folder), backends=backends)
        for i, engine in enumerate(Bundle.open(path).manifest.engines):
            if engine.runs_on:  # of which C++ has this one
                edit(path, f"engines.{i}.runs_on", ["openvino"])
        return path

    return build


@pytest.mark.parametrize(("folder", "chain"), CHAINS)
def test_chains_equal_the_reference_and_python(
    folder: str, chain: str, bundle: Callable[[str], Path], cpp_runtimes: Path
) -> None:
    library, expected = Library(cpp_runtimes / "diffusevae" / building.LIBRARY), golden.states(folder, chain)
    given = {"x_T": golden.expected(folder)["x_T"], "noise": golden.noise(folder, chain), **golden.given(folder)}
    given |= golden.setting(folder, chain)
    path, mapped = bundle(folder), NATIVE and folder == golden.MAPPED
    for backend, precision in (("openvino", "f32"), *([("native", "bf16")] if mapped else [])):
        with open_c(library, path, backend=backend, precision=precision) as c:
            found = c.sample(2, seed=0, **given)
        with Sampler(path, backend, precision, 2) as python:
            same = python.sample(2, seed=0, **given)
        np.testing.assert_array_equal(found.x, same.x)
        np.testing.assert_array_equal(found.images, same.images)
        if backend == "openvino":
            np.testing.assert_allclose(found.x, expected[max(expected)], rtol=0, atol=golden.tolerance(folder, chain))


@pytest.mark.parametrize(("folder", "chain"), GUIDED)
def test_guided_chains_equal_the_reference_and_python(
    folder: str, chain: str, tmp_path: Path, cpp_runtimes: Path, library: Library
) -> None:
    path = guided.build_guided(
        folder, chain, tmp_path, backends=("onnxruntime", "openvino", *(["native"] if NATIVE else []))
    )
    with_openvino = Library(cpp_runtimes / "diffusevae" / building.LIBRARY)
    given, states = guided.options(folder, chain), golden.states(folder, chain)
    # bf16 costs the gradient of some classifiers so much that another runtime computes it, of which C++ has OpenVINO.
    elsewhere = [i for i, engine in enumerate(Bundle.open(path).manifest.engines) if engine.runs_on]
    for i in elsewhere:
        edit(path, f"engines.{i}.runs_on", ["openvino"])
    others = [(with_openvino, "native", "bf16")] if NATIVE else []
    if NATIVE and not elsewhere:
        others.append((library, "native", "bf16"))
    elif NATIVE:
        with pytest.raises(Failed, match=r"BACKEND: .*openvino.*compiled without it.*DIFFUSEVAE_OPENVINO=ON"):
            open_c(library, path, precision="bf16")
    for compiled, backend, precision in ((with_openvino, "openvino", "f32"), *others):
        with open_c(compiled, path, backend=backend, precision=precision) as c:
            found = c.sample(2, seed=0, **given)
        with Sampler(path, backend, precision, 2) as python:
            same = python.sample(2, seed=0, **given)
        np.testing.assert_array_equal(found.x, same.x)
        np.testing.assert_array_equal(found.images, same.images)
        if backend == "openvino":
            np.testing.assert_allclose(found.x, states[max(states)], rtol=0, atol=golden.tolerance(folder, chain))
