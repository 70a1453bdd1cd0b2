"""A denoising diffusion GAN in C++ against its reference implementation, with Python's bits; in OpenVINO and natively."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from engine.backends.native.backend import Native
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError
from tests import ddgan_models as golden
from tests.cpp import building
from tests.cpp.capi import CSampler, Failed, Library, open_c
from tests.latent_runs import difference
from tests.manifests import edit

Pair = tuple[CSampler, Sampler]
NATIVE = Native.available()[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With native engines where they can be run; what of them another runtime runs, OpenVINO does, which C++ has."""
    backends = ("onnxruntime", "openvino", *(["native"] if NATIVE else []))
    path = golden.build_ddgan(tmp_path_factory.mktemp("ddgan"), backends=backends)
    for i, engine in enumerate(Bundle.open(path).manifest.engines):
        if engine.runs_on:
            edit(path, f"engines.{i}.runs_on", ["openvino"])
    return path


@pytest.fixture(scope="module", params=["openvino", *(["native"] if NATIVE else [])])
def pair(request: pytest.FixtureRequest, bundle: Path, cpp_runtimes: Path) -> Iterator[Pair]:
    """The model in C and in Python, in parts of two samples."""
    library, backend = Library(cpp_runtimes / "diffusevae" / building.LIBRARY), request.param
    precision = "f32" if backend == "openvino" else "bf16"
    python = Sampler(bundle, backend, precision, threads=2, max_batch=2)
    with open_c(library, bundle, backend=backend, precision=precision, max_batch=2) as c, python:
        yield c, python


def test_the_chain_equals_the_reference_and_python(pair: Pair) -> None:
    found, same = (sampler.sample(2, seed=0, **golden.given()) for sampler in pair)
    expected = golden.expected()["states"][-1]
    if pair[1].backend == "openvino":
        np.testing.assert_allclose(found.x, expected, rtol=0, atol=golden.tolerance())
    assert difference(found.x, expected) < 1.5e-2
    np.testing.assert_array_equal(found.x, same.x)
    np.testing.assert_array_equal(found.images, same.images)


@pytest.mark.parametrize("options", [{}, {"steps": 2, "method": "ddpm"}])
def test_latents_are_drawn_to_the_same_bits(pair: Pair, options: dict[str, object]) -> None:
    """Which are no result here: a caller knows how many rows there were when it has one only."""
    found, same = (sampler.sample(3, seed=11, **options) for sampler in pair)
    np.testing.assert_array_equal(found.x, same.x)
    assert "z" not in pair[0].outputs


def test_latents_for_another_number_of_steps_are_refused_as_in_python(pair: Pair) -> None:
    sentences = []
    for sampler in pair:
        with pytest.raises((Failed, ArgumentError), match="z holds 3 steps; this run has 4") as refused:
            sampler.sample(2, z=golden.latents()[:, :3].copy())
        sentences.append(str(refused.value).removeprefix("ARGUMENT: "))
    assert sentences[0] == sentences[1]
    assert pair[0].inputs["z"].drawn == 1
