"""Wrong requests: each refused before anything runs, with what was found, what was expected and what to do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, BackendError, BundleError, Sampler, SamplerStateError
from engine.bundle.inputs import RESERVED
from tests.samplers import ANY_BACKEND, SIZE, Z_DIM, T, bundle, open_toy, watch_graph

SHAPE = (3, SIZE, SIZE)
NAN_LATENT = np.full((1, Z_DIM), np.nan)


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with open_toy() as opened:
        yield opened


@pytest.fixture(scope="module")
def uncond() -> Iterator[Sampler]:
    with open_toy("uncond") as opened:
        yield opened


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, r"n is 0; expected at least 1"),
        ({"n": -3}, r"n is -3; expected at least 1"),
        ({"n": 2.0}, r"n is 2.0, a float; expected an integer"),
        ({"n": True}, r"n is True, a bool; expected an integer"),
        ({"steps": 0}, r"steps is 0; expected 1 \.\. 1000"),
        ({"steps": T + 1}, r"steps is 1001; expected 1 \.\. 1000"),
        ({"steps": 999}, r"uniform spacing over T=1000 exists for .*spacing='linspace'"),
        ({"steps": "10"}, r"steps is '10', a str; expected an integer"),
        ({"method": "ddmi"}, r"method is 'ddmi'; expected one of ddim, ddim_clipped, ddpm, .*\. Did you mean"),
        ({"method": ["ddim"]}, r"method is \['ddim'\], a list; expected a name"),
        ({"setting": ["fitted"]}, r"setting is \['fitted'\], a list; expected a name"),
        ({"spacing": "quadratic"}, r"spacing is 'quadratic'; .*Did you mean 'quad'"),
        ({"variance": "fixedlrge"}, r"variance is 'fixedlrge'; .*Did you mean 'fixedlarge'"),
        ({"eta": 2.0}, r"eta is 2.0; expected a number in 0 \.\. 1"),
        ({"eta": 0.5, "method": "ddpm"}, r"only ddim and ddim_clipped take eta"),
        ({"t_start": T}, r"t_start is 1000; expected a timestep in 0 \.\. 999"),
        ({"temperature": -1.0}, r"temperature is -1.0; expected"),
        ({"temperature": float("nan")}, r"temperature is nan; expected"),
        ({"guidance": float("inf")}, r"guidance is inf; expected"),
        ({"guidance": "1"}, r"guidance is '1', a str; expected a number"),
        ({"seed": -1}, r"seed is -1; expected 0 \.\. 2\*\*64 - 1"),
        ({"seed": 2**64}, r"expected 0 \.\. 2\*\*64 - 1"),
        ({"seed": 1.5}, r"seed is 1.5, a float; expected an integer"),
        ({"seed": []}, r"seed lists 0 seeds"),
        ({"seed": [1, 2], "n": 3}, r"contradictory: n says 3, seed says 2"),
        ({"z": np.zeros((2, Z_DIM)), "n": 3}, r"contradictory: n says 3, z says 2"),
        ({"zz": np.zeros((2, Z_DIM))}, r"no option 'zz', and this bundle has no such input: it takes z float32\[batch, 4\]"),
        ({"z": np.zeros((2, Z_DIM + 1))}, r"z has shape \[2, 5\]; expected float32 \[N, 4\]"),
        ({"z": np.zeros((0, Z_DIM))}, r"z has shape \[0, 4\]; expected float32 \[N, 4\]"),
        ({"z": np.zeros((2, Z_DIM, 2, 2))}, r"z has shape \[2, 4, 2, 2\]; expected"),
        ({"z": np.zeros((2, Z_DIM), int)}, r"z has dtype int64; expected float32 or float64"),
        ({"z": np.zeros((2, Z_DIM), np.float16)}, r"z has dtype float16; expected float32 or float64"),
        ({"z": NAN_LATENT}, r"z holds 4 values that are NaN or infinite"),
        ({"z": np.full((1, Z_DIM), 1e300)}, r"z holds 4 values that are NaN or infinite in float32"),
        ({"x_T": np.zeros((1, 1, SIZE, SIZE))}, r"x_T has shape \[1, 1, 8, 8\]; expected \[N, 3, 8, 8\]"),
        ({"x_T": np.zeros(SHAPE)}, r"x_T has shape \[3, 8, 8\]; expected \[N, 3, 8, 8\]"),
        ({"x_T": np.full((1, *SHAPE), np.inf)}, r"x_T holds 192 values that are NaN or infinite"),
        ({"x_T": np.zeros((2, *SHAPE)), "n": 3}, r"contradictory: n says 3, x_T says 2"),
        ({"noise": np.zeros((9, *SHAPE)), "steps": 10}, r"noise holds 9 steps; this run has 10"),
        ({"noise": np.zeros((10, 2, *SHAPE)), "n": 3}, r"contradictory: n says 3, noise says 2"),
        ({"noise": np.zeros((10, 2))}, r"noise has shape \[10, 2\]; expected \[steps, N, 3, 8, 8\]"),
    ],
)
def test_sample_refuses(sampler: Sampler, options: dict[str, Any], message: str) -> None:
    denoiser = watch_graph(sampler)
    with pytest.raises(ArgumentError, match=message):
        sampler.sample(**options)
    assert denoiser.calls == 0, "refused before the network ran"
    assert len(sampler.sample(seed=0)) == 1, "and the sampler still works"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \[2, 4, 4, 3\] \(uint8\); expected uint8 \[N, 8, 8, 3\].*Resize"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \[2, 3, 8, 8\] \(uint8\); expected uint8 \[N, 8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"shape \[0, 8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), r"shape \[8, 8\]"),
        (np.zeros((2, 8, 8, 3), np.float32), r"shape \[2, 8, 8, 3\] \(float32\); expected"),
        (np.zeros((2, 3, 8, 8), np.int64), r"dtype int64; expected uint8"),
        (np.full((1, 3, 8, 8), np.nan), r"images holds 192 values that are NaN"),
        (np.full((1, 3, 8, 8), 2.0), r"runs from 2 to 2; expected .*in \[0, 1\]"),
        (-np.ones((1, 3, 8, 8)), r"runs from -1 to -1; .*\(images \+ 1\) / 2"),
    ],
)
@pytest.mark.parametrize("method", ["reconstruct", "refine", "encode"])
def test_images_are_refused(sampler: Sampler, method: str, images: np.ndarray, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        getattr(sampler, method)(images)


def test_images_in_either_layout_and_of_any_strides_are_the_same(sampler: Sampler) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    expected = sampler.encode(pixels)["z"]
    planes = pixels.transpose(0, 3, 1, 2) / 255.0
    np.testing.assert_allclose(sampler.encode(planes)["z"], expected, atol=1e-6)
    np.testing.assert_allclose(sampler.encode(planes.astype(np.float32)[::-1])["z"][::-1], expected, atol=1e-6)
    np.testing.assert_allclose(sampler.encode(pixels[::2])["z"], expected[::2], atol=1e-6)
    np.testing.assert_allclose(sampler.encode(pixels[1])["z"], expected[1:2], atol=1e-6)


def test_non_contiguous_latents_and_noise_are_accepted(sampler: Sampler) -> None:
    rng = np.random.default_rng(0)
    z, x_T = rng.standard_normal((6, Z_DIM)), rng.standard_normal((6, *SHAPE))
    strided = sampler.sample(z=z[::2], x_T=x_T[::2])
    copied = sampler.sample(z=z[::2].copy(), x_T=x_T[::2].copy())
    np.testing.assert_array_equal(strided.x, copied.x)
    np.testing.assert_array_equal(sampler.sample(z=z.astype(np.float32)[::2], x_T=x_T[::2]).x, copied.x)


@pytest.mark.parametrize("method", ["reconstruct", "refine"])
def test_an_unknown_option_is_answered_with_the_nearest(sampler: Sampler, method: str) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ArgumentError, match=rf"{method} has no option 'stpes', .*Did you mean 'steps'\?"):
        getattr(sampler, method)(pixels, stpes=3)


def test_a_bundle_that_lacks_what_a_verb_needs_says_so(uncond: Sampler) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ArgumentError, match=r"guidance is 0.5, but nothing that this bundle's network is fed has a null"):
        uncond.sample(guidance=0.5)
    with pytest.raises(ArgumentError, match=r"t_start is 400, .* no start value to start from.*refine"):
        uncond.sample(t_start=400, steps=4)
    with pytest.raises(ArgumentError, match=r"sample has no option 'z', and this bundle has no such input: it takes none"):
        uncond.sample(z=np.zeros((1, Z_DIM)))
    with pytest.raises(ArgumentError, match=r"refine on a bundle without a start value .*Pass t_start"):
        uncond.refine(pixels)
    needs = {uncond.reconstruct: "an encoder", uncond.encode: "an encoder", uncond.decode: "a start value"}
    for call, needed in needs.items():
        with pytest.raises(ArgumentError, match=rf"needs {needed}.*, which this bundle lacks: it takes no inputs"):
            call(pixels)
    with pytest.raises(ArgumentError, match=r"draw needs an input that is drawn"):
        uncond.draw(1)
    with pytest.raises(ArgumentError, match=r"prior is 'standard', but no input is drawn here"):
        uncond.sample(prior="standard")


def test_reconstruct_takes_no_input_that_it_encodes(sampler: Sampler) -> None:
    with pytest.raises(ArgumentError, match=r"reconstruct encodes z from the images; expected none beside them"):
        sampler.reconstruct(np.zeros((SIZE, SIZE, 3), np.uint8), z=np.zeros((1, Z_DIM)))


def test_one_sample_of_an_input_is_shared_by_all(sampler: Sampler) -> None:
    z = np.random.default_rng(0).standard_normal(Z_DIM)
    shared = sampler.sample(3, seed=0, z=z)
    np.testing.assert_array_equal(shared.values["z"], np.repeat(z[None].astype(np.float32), 3, 0))
    np.testing.assert_array_equal(shared.x, sampler.sample(seed=[0, 1, 2], z=np.repeat(z[None], 3, 0)).x)


def test_interpolate_refuses(sampler: Sampler) -> None:
    with pytest.raises(ArgumentError, match=r"n is 0; expected at least 1"):
        sampler.interpolate(1, 2, 0)
    with pytest.raises(ArgumentError, match=r"b holds 2 samples of z; expected one, or an int seed"):
        sampler.interpolate(1, np.zeros((2, Z_DIM)))
    with pytest.raises(ArgumentError, match=r"interpolate has no option 'gidance', .*Did you mean 'guidance'"):
        sampler.interpolate(1, 2, gidance=1)
    with pytest.raises(ArgumentError, match=r"interpolate moves z from a to b; expected it not given too"):
        sampler.interpolate(1, 2, z=np.zeros((8, Z_DIM)))
    for part in ((0, 0), (2, 9), (-1, 2)):
        with pytest.raises(ArgumentError, match=r"part is .*; expected \(begin, end\) with .* end <= n, which is 8"):
            sampler.interpolate(1, 2, part=part)


def test_opening_refuses() -> None:
    with pytest.raises(BundleError, match=r"found nothing that can be read"):
        Sampler("no-such.bundle")
    with pytest.raises(ArgumentError, match=r"found 'openvno', expected one of .*Did you mean 'openvino'"):
        Sampler(bundle(), backend="openvno")
    with pytest.raises(ArgumentError, match=r"found 'fp32', expected one of f32, bf16, fp16, int8, auto"):
        Sampler(bundle(), ANY_BACKEND, "fp32")
    with pytest.raises(BackendError, match=r"found precision 'bf16', expected one of those it has: f32"):
        Sampler(bundle(), "onnxruntime", "bf16")
    with pytest.raises(ArgumentError, match=r"threads: found 0, expected an integer"):
        Sampler(bundle(), ANY_BACKEND, threads=0)
    with pytest.raises(ArgumentError, match=r"max_batch is 0; expected at least 1"):
        Sampler(bundle(), ANY_BACKEND, threads=2, max_batch=0)


def test_a_closed_sampler_says_so() -> None:
    sampler = open_toy()
    sampler.close()
    sampler.close()
    for call in (sampler.sample, sampler.clone):
        with pytest.raises(SamplerStateError, match=r"This Sampler is closed; expected an open one"):
            call()


def test_no_input_of_a_bundle_has_the_name_of_an_argument() -> None:
    public = [verb for name, verb in vars(Sampler).items() if name[0] != "_" and callable(verb)]
    verbs = [inspect.signature(verb).parameters.values() for verb in public]
    open_ones = [arguments for arguments in verbs if any(one.kind is one.VAR_KEYWORD for one in arguments)]
    names = {one.name for arguments in open_ones for one in arguments if one.kind is not one.VAR_KEYWORD}
    assert {"what", "weights", "part", "value", "self"} <= names
    assert sorted(names - set(RESERVED)) == []
