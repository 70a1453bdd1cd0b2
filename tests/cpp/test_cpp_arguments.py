"""The C interface's refusals: each with a sentence, and the sampler is usable after that."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import __version__
from engine.kernels.native_library import native_library
from tests.cpp import capi
from tests.cpp.capi import ARGUMENT, BACKEND, NUMERICS, UNSET, Arguments, CSampler, Failed, Library, open_c
from tests.native_models import NEEDS_NATIVE

pytestmark = NEEDS_NATIVE

MOST = 2**63 - 1


@pytest.fixture(scope="module")
def sampler(library: Library, native_bundle: Callable[..., Path]) -> Iterator[CSampler]:
    with open_c(library, native_bundle("form1"), max_batch=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def unconditional(library: Library, native_bundle: Callable[..., Path]) -> Iterator[CSampler]:
    with open_c(library, native_bundle("uncond")) as opened:
        yield opened


def with_nan(*shape: int) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    values.flat[-1] = np.nan
    return values


REFUSED: dict[str, tuple[Arguments, str]] = {
    "n 0": ({"n": 0}, "n is 0; expected at least 1"),
    "n negative": ({"n": -3}, "n is -3; expected at least 1"),
    "n beyond memory": ({"n": MOST, "room": 1}, "images of the result has room for 1; this request has 9223372036854775807"),
    "n without room": ({"n": 5, "room": 4}, "images of the result has room for 4; this request has 5"),
    "steps 0": ({"steps": 0}, r"steps is 0; expected 1 \.\. 1000, the timesteps there are with T = 1000"),
    "steps -1": ({"steps": -1}, "steps is -1; expected 1"),
    "steps too many": ({"steps": 1001, "spacing": "linspace"}, r"steps is 1001; expected 1 \.\. 1000"),
    "no whole stride": ({"steps": 999}, "steps is 999, which no whole stride gives: uniform spacing over T=1000 exists for"),
    "too many for t_start": ({"steps": 5, "t_start": 3}, r"expected 1 \.\. 4, the timesteps there are with t_start = 3"),
    "method": ({"method": "dimm"}, "method is 'dimm'; expected one of ddim, .*plms. Did you mean 'ddim'"),
    "spacing": ({"spacing": "uniforn"}, "spacing is 'uniforn'; expected one of .* Did you mean 'uniform'"),
    "a word that is none": ({"method": "\x1b[31m" * 40}, "method is '.{1,90}; expected one of ddim, .*plms"),
    "an empty word": ({"variance": ""}, "variance is ''; expected one of fixedlarge, fixedsmall, learned_range"),
    "eta above 1": ({"eta": 1.5}, r"eta is 1\.5; expected a number in 0 \.\. 1"),
    "eta NaN": ({"eta": float("nan")}, "eta is nan; expected a number"),
    "eta with ddpm": ({"eta": 0.5, "method": "ddpm"}, r"eta is 0\.5 with method 'ddpm'; only ddim and"),
    "etas of other steps": ({"eta": [1.0, 0.5], "steps": 5}, "eta lists 2 numbers; expected one, or 5, one a step"),
    "eta and etas": ({"eta": 0.5, "etas": (ctypes.c_double * 1)(1.0), "etas_count": 1}, "eta and etas are both given; ex"),
    "etas without a list": ({"etas_count": 3}, "etas_count is 3, but etas is a null pointer; expected both or neither"),
    "no etas": ({"eta": [1.0], "etas_count": 0}, "etas_count is 0; expected at least 1"),
    "etas beyond memory": ({"eta": [1.0], "etas_count": MOST}, "etas .* would be larger than any memory"),
    "eta of a step NaN": ({"eta": [1.0, float("nan")], "steps": 2}, r"eta\[1\] is nan; expected a number in 0 \.\. 1"),
    "noise scale negative": ({"noise_scale": -1.0}, "noise_scale is -1; expected a number of at least 0"),
    "eps scale of a step": ({"eps_scale": [1.0, -1.0], "steps": 2}, r"eps_scale\[1\] is -1; expected a number of at"),
    "timesteps that rise": ({"timesteps": [5, 7]}, r"timesteps\[1\] is 7 after 5; expected a smaller one: each comes once"),
    "timesteps beyond T": ({"timesteps": [1000]}, r"timesteps\[0\] is 1000; expected a timestep in 0 \.\. 999"),
    "timesteps beside steps": ({"timesteps": [5, 2], "steps": 3}, "steps is 3, but timesteps lists 2: leave steps out"),
    "timesteps beside a spacing": ({"timesteps": [5], "spacing": "quad"}, "spacing is 'quad' beside timesteps, which"),
    "timesteps beside t_start": ({"timesteps": [5], "t_start": 4}, "t_start is 4, but timesteps begin at 5: pass t"),
    "timesteps_count": ({"timesteps_count": -1}, "timesteps_count is -1, but timesteps is a null pointer"),
    "rho": ({"spacing": "karras", "rho": 0.5}, r"rho is 0\.5; expected a number in 1 \.\. 100"),
    "rho of others": ({"spacing": "quad", "rho": 3.0}, "rho is 3 with spacing 'quad'; only karras takes rho"),
    "t_start": ({"t_start": 1000}, r"t_start is 1000; expected a timestep in 0 \.\. 999, e\.g\. 450"),
    "t_start negative": ({"t_start": -1}, "t_start is -1; expected a timestep"),
    "uniform with t_start": ({"t_start": 9, "spacing": "uniform", "steps": 2}, "would miss t_start: use spacing 'linspace'"),
    "truncated with t_start": ({"t_start": 9, "spacing": "truncated", "steps": 2}, "starts at t = 1, but t_start is 9"),
    "quad, one step": ({"steps": 1, "spacing": "quad"}, "steps is 1, which quad spacing would spend at t = 0"),
    "temperature": ({"temperature": -0.1}, r"temperature is -0\.1; expected a number of at least 0"),
    "temperature infinite": ({"temperature": float("inf")}, "temperature is inf; expected a number"),
    "guidance NaN": ({"guidance": float("nan")}, "guidance is nan; expected a finite number"),
    "half a guidance interval": ({"guidance_interval": (UNSET, 5), "guidance": 1.0}, "has one of its two timesteps alone"),
    "guidance interval": ({"guidance_interval": (9, 5), "guidance": 1.0}, r"\(9, 5\); expected two timesteps of 0 \.\. 999"),
    "no codebook": ({"quantize_denoised": 1}, "quantize_denoised is given, but this bundle has no codebook"),
    "quantize_denoised": ({"quantize_denoised": 2}, "quantize_denoised is 2; expected 0 or 1"),
    "variance": ({"variance": "fixed"}, "variance is 'fixed'; expected one of fixedlarge, fixedsmall, learned_range"),
    "clip": ({"clip": 2}, "clip is 2; expected 0 or 1"),
    "prior": ({"prior": "bundel"}, r"prior: found 'bundel', expected .*bundle, standard\. Did you mean 'bundle'"),
    "prior that is not there": ({"prior": "bundle"}, "this bundle holds no fitted prior"),
    "prior of a given z": ({"prior": "standard", "z": "z"}, "prior is 'standard', but no input is drawn here"),
    "has_seed": ({"has_seed": 7}, "has_seed is 7; expected 0 or 1"),
    "two seeds": ({"seed": [1], "has_seed": 1}, "seeds and seed are both given"),
    "seeds_count": ({"seed": [1], "seeds_count": 0}, "seeds_count is 0; expected at least 1"),
    "seeds without an array": ({"seeds_count": 3}, "seeds_count is 3, but seeds is a null pointer"),
    "seeds beyond memory": ({"seed": [1], "seeds_count": MOST}, "seeds .* would be larger than any memory"),
    "z NaN": ({"z": "z NaN"}, "z holds 1 values that are NaN or infinite; expected finite numbers"),
    "x_T NaN": ({"x_T": "x NaN"}, "x_T holds 1 values that are NaN"),
    "noise NaN": ({"noise": "noise NaN", "steps": 2}, "noise holds 1 values that are NaN"),
    "noise of other steps": ({"noise": "noise", "steps": 5}, "noise holds 2 steps; this run has 5"),
    "noise of another state": ({"noise": "x_T"}, r"noise has shape \[2, 3, 16, 16\]; expected float32 \[steps, N, 3, 16, 1"),
    "x_T of another state": ({"x_T": "z"}, r"x_T has shape \[3, [0-9]+\]; expected float32 \[N, 3, 16, 16\]"),
    "z of another width": ({"z": "x_T"}, r"z has shape \[2, 3, 16, 16\]; expected float32 \[N, [0-9]+\]"),
    "inputs without an array": ({"inputs_count": 5}, "inputs_count is 5, but inputs is a null pointer"),
    "numbers that contradict": ({"n": 2, "z": "z"}, "contradictory: n says 2, z says 3. Make them agree"),
    "all numbers": ({"n": 3, "z": "z", "seed": [1, 2]}, "contradictory: n says 3, seeds says 2, z says 3"),
    "x_T for others": ({"n": 3, "x_T": "x_T"}, "contradictory: n says 3, x_T says 2"),
}


def arrays(sampler: CSampler, given: Arguments) -> Arguments:
    """The arrays that REFUSED names."""
    image, width = sampler.info.state, sampler.inputs["z"].shape[1]
    named = {
        "z": np.zeros((3, width), np.float32), "z NaN": with_nan(3, width),
        "x_T": np.zeros((2, *image), np.float32), "x NaN": with_nan(1, *image),
        "noise": np.zeros((2, 1, *image), np.float32), "noise NaN": with_nan(2, 1, *image),
    }  # fmt: skip
    return {
        name: named[value] if name in ("z", "x_T", "noise") and isinstance(value, str) else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("case", REFUSED)
def test_options(case: str, sampler: CSampler) -> None:
    given, message = REFUSED[case]
    with pytest.raises(Failed, match=message) as caught:
        sampler.sample(**{"room": 3, **arrays(sampler, given)})
    assert caught.value.status == ARGUMENT
    assert str(caught.value).isprintable()
    assert len(sampler.sample(seed=0, steps=1, spacing="linspace").images) == 1


def test_what_a_bundle_without_inputs_has_not(unconditional: CSampler) -> None:
    cases: dict[str, Arguments] = {
        "guidance is 0.5, but nothing that this bundle's network is fed has a null": {"guidance": 0.5},
        "t_start is 5, but this bundle's pipeline has no start value": {"t_start": 5, "steps": 2},
        "prior is 'standard', but no input is drawn here": {"prior": "standard"},
    }
    for message, given in cases.items():
        with pytest.raises(Failed, match=message):
            unconditional.sample(**given)
    assert not unconditional.inputs
    refuse_input(unconditional, "inputs has an array 'z', and this bundle has no such input: it takes none", name=b"z")
    with pytest.raises(Failed, match=r"index is 0; this bundle has 0 inputs, counted from 0"):
        unconditional.library.call("input", unconditional.handle, 0, ctypes.byref(info_of(unconditional)))


def info_of(sampler: CSampler) -> Any:
    return sampler.library.made(capi.ArrayInfo, "array_info")


def refuse_input(sampler: CSampler, message: str, *, more: int = 0, **fields: Any) -> None:
    """Sample with one input, x_T, of which these fields are changed; `more`: how often it comes again."""
    room = np.zeros((1, *sampler.info.state), np.float32)
    array = capi.Array.of("x_T", room)
    for name, value in fields.items():
        setattr(array, name, value)
    options = sampler.library.made(capi.SampleOptions, "sample_options")
    options.inputs, options.inputs_count = (capi.Array * (1 + more))(*[array] * (1 + more)), 1 + more
    result = sampler.library.made(capi.Result, "result")
    with pytest.raises(Failed, match=message) as caught:
        sampler.library.call("sample", sampler.handle, ctypes.byref(options), ctypes.byref(result))
    assert caught.value.status == ARGUMENT
    assert str(caught.value).isprintable()


def test_inputs_that_are_none(sampler: CSampler) -> None:
    at = np.zeros(2**14, np.float32).ctypes.data
    shape = ctypes.c_int64 * 8
    refuse_input(sampler, r"inputs\[0\] has no name; expected one of x_T, noise, z", name=None)
    refuse_input(sampler, "inputs has an array 'x_t', .* it takes z float32.* Did you mean 'x_T'", name=b"x_t")
    refuse_input(sampler, "inputs has an array '.*x1b", name=b"\x1b[31m")
    refuse_input(sampler, "inputs has the array 'x_T' twice", more=1)
    refuse_input(sampler, r"x_T has dtype float64 \(5\); expected float32", dtype=5)
    refuse_input(sampler, r"x_T has dtype no dtype \(-7\); expected float32", dtype=-7)
    refuse_input(sampler, "x_T has rank 0; expected 1 .. 8", rank=0)
    refuse_input(sampler, "x_T has rank 2147483647; expected 1 .. 8", rank=2**31 - 1)
    refuse_input(sampler, r"x_T has shape \[-1, 3, 16, 16\]", shape=shape(-1, 3, 16, 16))
    refuse_input(sampler, r"x_T has shape \[0, 3, 16, 16\]", shape=shape(0, 3, 16, 16))
    refuse_input(sampler, "x_T .* would be larger than any memory", shape=shape(MOST, 3, 16, 16))
    refuse_input(sampler, r"x_T \[1, 3, 16, 16\] is a null pointer", data=None)
    refuse_input(sampler, r"x_T \[1, 3, 16, 16\] begins at an address that is no multiple of 4", data=at + 2)


def test_results_that_are_not_wanted(sampler: CSampler) -> None:
    result = sampler.library.made(capi.Result, "result")
    sampler.library.call("sample", sampler.handle, None, ctypes.byref(result))
    assert (result.n, result.rows) == (1, sampler.info.defaults.steps)
    assert result.timings.total_ms > 0


def test_results_without_room(sampler: CSampler) -> None:
    room = np.zeros(2**16, np.uint8)
    at = room.ctypes.data
    shape = ctypes.c_int64 * 8

    def run(message: str, *arrays: capi.Array, n: int = capi.UNSET, count: int | None = None) -> None:
        result = sampler.library.made(capi.Result, "result")
        result.outputs = (capi.Array * len(arrays))(*arrays) if arrays else None
        result.outputs_count = len(arrays) if count is None else count
        options = sampler.library.made(capi.SampleOptions, "sample_options")
        options.n = n
        with pytest.raises(Failed, match=message) as caught:
            sampler.library.call("sample", sampler.handle, ctypes.byref(options), ctypes.byref(result))
        assert str(caught.value).isprintable()

    def images(**fields: Any) -> capi.Array:
        array = capi.Array(b"images", 3, 4, shape(1, 16, 16, 3), at)
        for name, value in fields.items():
            setattr(array, name, value)
        return array

    run("outputs_count of the result is 1, and outputs is a null pointer", count=1)
    run("outputs_count of the result is -1, and outputs is an array", images(), count=-1)
    run(r"outputs\[0\] of the result has no name; expected one of images, x, seeds", images(name=None))
    run(r"outputs\[1\] of the result is 'imgaes', .* Did you mean 'images'", images(), images(name=b"imgaes"))
    run("outputs of the result has 'images' twice in one dtype", images(), images())
    run(r"images of the result has dtype float32 \(1\); expected uint8\.", images(dtype=1))
    run(r"x of the result has dtype int64 \(2\); expected float32, or uint8 for its pixels", images(name=b"x", dtype=2))
    run(r"images of the result has rank 9; expected uint8 \[1, 16, 16, 3\]", images(rank=9))
    run(r"images of the result has shape \[1, 3, 16, 16\]; expected uint8 \[1, 16,", images(shape=shape(1, 3, 16, 16)))
    run("images of the result has room for -1; this request has 1", images(shape=shape(-1, 16, 16, 3)))
    run("images of the result .* is a null pointer", images(data=None))
    run(r"timesteps of the result has room for 1; this request has [0-9]+", capi.Array(b"timesteps", 2, 1, shape(1), at))
    x = capi.Array(b"x", 1, 4, shape(1, 3, 16, 16), at + 1)
    run(r"x of the result .*begins at an address that is no multiple of 4", x)
    run(r"seeds of the result .* no multiple of 8", capi.Array(b"seeds", 4, 1, shape(1), at + 4))
    run(r"x of the result .* would be larger than any memory", capi.Array(b"x", 1, 4, shape(MOST, 3, 16, 16), at), n=MOST)
    assert not room.any(), "a refused request writes nothing"


def test_structs_of_another_size(sampler: CSampler) -> None:
    structs: dict[str, Any] = {
        "sample_options": capi.SampleOptions, "result": capi.Result, "info": capi.Info, "step_table": capi.Table,
        "array_info": capi.ArrayInfo,
    }  # fmt: skip
    made = {name: sampler.library.made(struct, name) for name, struct in structs.items()}
    at = {name: ctypes.byref(value) for name, value in made.items()}
    calls: dict[str, tuple[Any, ...]] = {
        "info": ("describe", at["info"]), "step_table": ("get_step_table", None, at["step_table"]),
        "sample_options": ("sample", at["sample_options"], at["result"]), "result": ("sample", None, at["result"]),
        "array_info": ("output", 0, at["array_info"]),
    }  # fmt: skip
    for name, (function, *arguments) in calls.items():
        right = made[name].size
        for wrong in (0, right - 8, right + 8):
            made[name].size = wrong
            with pytest.raises(Failed, match=rf"{name}\.size is {wrong}; expected {right}\. .*diffusevae_{name}_init"):
                sampler.library.call(function, sampler.handle, *arguments)
        made[name].size = right


def test_null_pointers(sampler: CSampler) -> None:
    library, place = sampler.library, capi.POINTER()
    result = library.made(capi.Result, "result")
    for name, arguments, message in (
        ("open", (None, None, ctypes.byref(place)), "path is a null pointer"),
        ("open", (b"somewhere", None, None), "the place for the sampler is a null pointer"),
        ("clone", (None, ctypes.byref(place)), "sampler is a null pointer"),
        ("clone", (sampler.handle, None), "the place for the sampler is a null pointer"),
        ("describe", (sampler.handle, None), "info is a null pointer"),
        ("input", (sampler.handle, 0, None), "array_info is a null pointer"),
        ("output", (None, 0, ctypes.byref(info_of(sampler))), "sampler is a null pointer"),
        ("output", (sampler.handle, -1, ctypes.byref(info_of(sampler))), r"index is -1; this bundle has \d+ outputs"),
        ("sample", (None, None, ctypes.byref(result)), "sampler is a null pointer"),
        ("sample", (sampler.handle, None, None), "result is a null pointer"),
        ("get_step_table", (sampler.handle, None, None), "step_table is a null pointer"),
        ("preview", (sampler.handle, None), "images is a null pointer"),
    ):
        with pytest.raises(Failed, match=message) as caught:
            library.call(name, *arguments)
        assert caught.value.status == ARGUMENT
    library.c.diffusevae_free(None)
    library.c.diffusevae_cancel(None)
    for struct in ("open_options", "sample_options", "info", "array_info", "result", "step_table"):
        getattr(library.c, f"diffusevae_{struct}_init")(None)


OPENING: dict[str, tuple[Arguments, int, str]] = {
    "backend": ({"backend": "nativ"}, ARGUMENT, "backend: found 'nativ', expected one of native, .* Did you mean 'native'"),
    "tensorrt": ({"backend": "tensorrt"}, BACKEND, "configure with -DDIFFUSEVAE_TENSORRT=ON|one that the bundle lists"),
    "precision": ({"precision": "bf61"}, ARGUMENT, "precision is 'bf61'; expected one of auto, f32, bf16, fp16, int8"),
    "a precision of others": ({"precision": "f32"}, BACKEND, "native: found precision 'f32', expected .*bf16, int8"),
    "a precision that is not built": ({"precision": "int8"}, capi.BUNDLE, "int8"),
    "threads": ({"threads": 0}, ARGUMENT, r"threads: found 0, expected an integer in 1\.\."),
    "too many threads": ({"threads": 10**9}, ARGUMENT, "threads: found 1000000000, expected"),
    "max_batch": ({"max_batch": 0}, ARGUMENT, r"max_batch is 0; expected 1 \.\. 1048576"),
    "max_batch unset": ({"max_batch": capi.UNSET}, ARGUMENT, "max_batch is -9223372036854775808; expected"),
    "size": ({"size": 8}, ARGUMENT, r"open_options\.size is 8; expected [0-9]+\. Prepare .*diffusevae_open_options_init"),
}


@pytest.mark.parametrize("case", OPENING)
def test_opening(case: str, library: Library, native_bundle: Callable[..., Path]) -> None:
    given, status, message = OPENING[case]
    with pytest.raises(Failed, match=message) as caught:
        open_c(library, native_bundle("form1"), **given)
    assert caught.value.status == status


def test_a_bundle_without_this_backend(library: Library, golden_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(Failed, match="found backend 'native', expected one that the bundle lists: onnxruntime") as caught:
        open_c(library, golden_bundle("form1"))
    assert caught.value.status == BACKEND


@pytest.mark.parametrize("isa", ["avx3", "amx", "avx512"])
def test_an_instruction_set_that_is_not_there(
    isa: str, library: Library, native_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if native_library().supports(isa)[0]:
        pytest.skip(f"this machine has {isa}")
    monkeypatch.setenv("DIFFUSEVAE_ISA", isa)
    with pytest.raises(Failed, match=f"DIFFUSEVAE_ISA: found '{isa}'") as caught:
        open_c(library, native_bundle("form1"))
    assert caught.value.status == BACKEND


def test_a_latent_that_makes_nan(sampler: CSampler) -> None:
    z = np.full((1, sampler.inputs["z"].shape[1]), 3e38, np.float32)
    with pytest.raises(Failed, match="returned NaN or infinity") as caught:
        sampler.sample(z=z, steps=2, temperature=1e30, guidance=1e30)
    assert caught.value.status == NUMERICS
    assert np.isfinite(sampler.sample(seed=0, steps=2).x).all()


def test_an_error_is_each_threads_own(sampler: CSampler) -> None:
    with pytest.raises(Failed, match="n is 0"):
        sampler.sample(n=0)
    elsewhere: list[bytes] = []
    thread = threading.Thread(target=lambda: elsewhere.append(sampler.library.c.diffusevae_error()))
    thread.start()
    thread.join()
    assert elsewhere == [b""]
    assert b"n is 0" in sampler.library.c.diffusevae_error()


def test_texts(library: Library) -> None:
    assert library.c.diffusevae_version().decode() == __version__
    names = [library.c.diffusevae_status_name(status).decode() for status in range(-1, 11)]
    known = ["OK", "ARGUMENT", "BUNDLE", "BACKEND", "NUMERICS", "CANCELLED", "BUSY", "NO_MEMORY", "INTERNAL", "DEADLINE"]
    assert names == ["UNKNOWN", *known, "UNKNOWN"]
