"""The optional backends of the C++ library. OpenVINO, and TensorRT's code over a stand-in.

The stand-in (tensorrt_stand_in/README.md) shows that the backend's own code works, and nothing about TensorRT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler
from tests import mock_tensorrt, samplers, toy_family
from tests.cpp import building, bundles
from tests.cpp.capi import Failed, Library, open_c
from tests.native_models import NEEDS_NATIVE, share
from tests.processes import forked

KINDS = ("form1", "form2", "zcond", "uncond")
RUNS: dict[str, dict[str, Any]] = {
    "ddim": {"steps": 5},
    "ddpm": {"steps": 5, "method": "ddpm"},
    "2M": {"steps": 5, "method": "dpmpp_2m"},
    "PLMS": {"steps": 5, "method": "plms"},
    "guided": {"steps": 4, "guidance": 1.5},
    "truncated": {"steps": 3, "t_start": 500},
}
FITTING = [(kind, run) for kind in KINDS for run in RUNS if kind != "uncond" or run not in ("guided", "truncated")]


@pytest.fixture(scope="module")
def library(cpp_runtimes: Path) -> Library:
    return Library(cpp_runtimes / "diffusevae" / building.LIBRARY)


# ---- OpenVINO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "run"), FITTING)
def test_openvino_makes_the_bits_of_pythons_openvino(kind: str, run: str, library: Library) -> None:
    """One runtime, the same options, the same arithmetic around it: nothing may differ."""
    bundle, given = samplers.bundle(kind), {"seed": 11, **RUNS[run]}
    with open_c(library, bundle, backend="openvino") as sampler:
        assert (sampler.info.backend, sampler.info.precision) == (b"openvino", b"f32")
        found = sampler.sample(3, **given)
    with Sampler(bundle, backend="openvino", precision="f32", threads=2) as sampler:
        expected = sampler.sample(3, **given)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.x, expected.x)


FAMILY: dict[str, dict[str, Any]] = {
    "a class for all": {"label": 3},
    "a class each": {"label": [0, 9, 10]},
    "guided": {"label": [1, 2, 3], "guidance": 2.0},
    "guided, 2M": {"label": 7, "guidance": 1.0, "method": "dpmpp_2m", "steps": 5},
    "ddpm": {"label": 2, "method": "ddpm", "steps": 5},
}


@pytest.mark.parametrize("case", FAMILY)
@pytest.mark.parametrize("n", [3, 9])  # lanes of up to eight samples are one call of the network
def test_a_family_that_only_the_tests_know(case: str, n: int, library: Library, tmp_path: Path) -> None:
    """A latent state of another size than the image, a label with a null, graphs before and after the loop, v prediction."""
    bundle, given = toy_family.build_family(tmp_path / "family.bundle"), {"seed": 4, **FAMILY[case]}
    label = np.resize(np.asarray(given.pop("label"), np.int64), n if isinstance(FAMILY[case]["label"], list) else 1)
    with open_c(library, bundle, backend="openvino") as sampler:
        assert [info.text for info in sampler.inputs.values()] == ["label int64[batch]", "style float32[batch, 5]"]
        assert (sampler.inputs["label"].has_null, sampler.inputs["label"].drawn, sampler.inputs["label"].high) == (1, 0, 10)
        with pytest.raises(Failed, match="sample: found no label, expected it: this bundle takes label int64"):
            sampler.sample(n)
        with pytest.raises(Failed, match=r"label runs from 11 to 11; expected values in 0 \.\. 10"):
            sampler.sample(n, label=[11])
        found = sampler.sample(n, label=label, **given)
    with Sampler(bundle, backend="openvino", precision="f32", threads=2) as sampler:
        expected = sampler.sample(n, label=label, **given)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.x, expected.x)
    assert found.images.shape == (n, 12, 16, 3)
    assert found.pixels["decoded"].tobytes() == found.images.tobytes()
    for name, value in expected.values.items():
        np.testing.assert_array_equal(found.values[name], value)


def test_openvino_runs_a_real_network_as_python_does(library: Library, golden_bundle: Callable[[str], Path]) -> None:
    bundle = golden_bundle("form1")
    with open_c(library, bundle, backend="openvino") as sampler, sampler.clone() as clone:
        found, again = sampler.sample(2, seed=3, steps=4), clone.sample(2, seed=3, steps=4)
    with Sampler(bundle, backend="openvino", precision="f32", threads=2) as sampler:
        expected = sampler.sample(2, seed=3, steps=4)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(again.images, expected.images)


@NEEDS_NATIVE
def test_openvino_runs_a_graph_for_native(library: Library, native_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = share(native_bundle("form1"), tmp_path / "shared", "vae_decoder", ["openvino"])
    with open_c(library, bundle, backend="native") as sampler, sampler.clone() as clone:
        found, again = sampler.sample(2, seed=3, steps=2), clone.sample(2, seed=3, steps=2)
    with Sampler(bundle, backend="native", precision="bf16", threads=2) as sampler:
        expected = sampler.sample(2, seed=3, steps=2)
        assert sampler._pipeline.backend.graph("vae_decoder").backend == "openvino"
    for batch in (found, again):
        np.testing.assert_array_equal(batch.x, expected.x)
        np.testing.assert_array_equal(batch.values["recon"], expected.values["recon"])


def test_openvino_has_f32_only(library: Library) -> None:
    with pytest.raises(Failed, match=r"BACKEND: .*found 'bf16', expected f32"):
        open_c(library, samplers.bundle("form1"), backend="openvino", precision="bf16")


def test_openvino_is_refused_a_graph_with_weights_in_another_file(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"BUNDLE: .*denoiser\.onnx.*data lies in another file, expected .* inside"):
        open_c(library, external(tmp_path), backend="openvino")


def external(folder: Path) -> Path:
    """A toy bundle whose denoiser names a file for one of its weights."""
    from onnx import TensorProto

    from engine.bundle.writer import write_bundle
    from tests import toy

    models = toy.models_of(1, 8, 4, False)
    weight = models["denoiser"].graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="elsewhere.bin")
    files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    write_bundle(folder / "toy.bundle", toy.manifest_of(models, 1, 8, 4, False, ["openvino"]), files)
    return folder / "toy.bundle"


# ---- TensorRT, over the stand-in ---------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "run"), FITTING)
def test_tensorrt_code_makes_the_toy_models_images(kind: str, run: str, library: Library, tmp_path: Path) -> None:
    """Within one level of Python's: the stand-in sums and exponentiates in another order than OpenVINO."""
    bundle, given = bundles.with_plans(tmp_path / "toy.bundle", kind), {"seed": 11, **RUNS[run]}
    with open_c(library, bundle, backend="tensorrt") as sampler:
        assert (sampler.info.backend, sampler.info.precision) == (b"tensorrt", b"fp16")
        found = sampler.sample(3, **given)
        alone = [sampler.sample(1, **{**given, "seed": 11 + i}).images[0] for i in range(3)]
    with Sampler(samplers.bundle(kind), backend="openvino", precision="f32", threads=1) as sampler:
        expected = sampler.sample(3, **given)
    assert np.ptp(expected.images) > 50
    assert np.abs(found.images.astype(int) - expected.images.astype(int)).max() <= 1
    np.testing.assert_array_equal(found.images, alone)


def test_tensorrt_code_fills_holes(library: Library, tmp_path: Path) -> None:
    given, rng = {"seed": 11, "steps": 5, "method": "ddpm"}, np.random.default_rng(2)
    images, masks = rng.integers(0, 256, (3, 8, 8, 3), np.uint8), rng.choice([0, 0.5, 1], (1, 1, 8, 8)).astype(np.float32)
    with open_c(library, bundles.with_plans(tmp_path / "toy.bundle", "uncond"), backend="tensorrt", max_batch=2) as sampler:
        found = sampler.inpaint(images, masks, **given).images
    with Sampler(samplers.bundle("uncond"), backend="openvino", precision="f32", threads=1) as sampler:
        expected = sampler.inpaint(images, masks, **given).images
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_tensorrt_code_survives_hardships_and_gives_everything_back(cpp_runtimes: Path, tmp_path: Path) -> None:
    bundle = bundles.with_plans(tmp_path / "toy.bundle")
    damaged = bundles.damaged(bundle, tmp_path / "damaged")
    said = building.run([cpp_runtimes / "hardships", bundle, damaged, "tensorrt"])
    assert re.fullmatch(r"\d+ checks\n", said)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": "10.8.0.43"}, r"found a plan of tensorrt 10\.8\.0\.43, expected one of 10\.9\.0\.34, .*rebuild with: "),
        ({"targets": ("sm80", "sm89")}, r"found a plan for sm80, sm89, expected one for sm86, which .*--targets sm86"),
        ({"targets": ("sm89+",)}, r"found a plan for sm89\+, expected one for sm86"),
        ({"plans": {"denoiser": b"short"}}, r"found 5 bytes, expected a plan, which is longer"),
        ({"plans": {"denoiser": b"x" * 200}}, r"refuses to load the plan \(it said: Serialization assertion failed\)"),
        ({"plans": {"denoiser": bundles.plan("denoiser", "uncond")}}, r"found cond as nothing .*expected cond float32"),
        ({"plans": {"denoiser": bundles.plan("vae_decoder", "form1")}}, r"found x as nothing of that kind .*expected x"),
    ],
)
def test_a_plan_for_something_else_is_refused(
    changes: dict[str, Any], expected: str, library: Library, tmp_path: Path
) -> None:
    if "plans" in changes:
        names = ("vae_encoder", "vae_decoder", "timestep_table", "denoiser")
        changes = {"plans": {name: bundles.plan(name, "form1") for name in names} | changes["plans"]}
    with pytest.raises(Failed, match=f"BACKEND: .*{expected}"):
        open_c(library, bundles.with_plans(tmp_path / "toy.bundle", **changes), backend="tensorrt")


@pytest.mark.parametrize("targets", [("sm86",), ("sm80+",), ("sm89", "sm75+")])
def test_a_plan_for_this_device_is_taken(targets: tuple[str, ...], library: Library, tmp_path: Path) -> None:
    with open_c(library, bundles.with_plans(tmp_path / "toy.bundle", targets=targets), backend="tensorrt") as sampler:
        assert sampler.sample(1, seed=1, steps=2).images.any()


def test_a_batch_outside_the_plans_range_is_told_and_the_sampler_goes_on(library: Library, tmp_path: Path) -> None:
    with open_c(library, bundles.with_plans(tmp_path / "toy.bundle"), backend="tensorrt") as sampler:
        with pytest.raises(Failed, match=r"BACKEND: .*input \w+: found \[17, .*expected 17 to be in 1\.\.16, .*--trt-batch"):
            sampler.sample(17, seed=1, steps=2)
        alone = sampler.sample(1, seed=1, steps=2)
    with open_c(library, bundles.with_plans(tmp_path / "other.bundle"), backend="tensorrt", max_batch=16) as sampler:
        many = sampler.sample(17, seed=1, steps=2)
    np.testing.assert_array_equal(many.images[0], alone.images[0])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("cudaGetDevice", r"the current device: found CUDA error 1 \(invalid value\), expected success; .*nvidia-smi"),
        ("createInferRuntime", r"refuses to start \(it said: nothing\)"),
        ("createExecutionContext", r"refuses an execution context"),
        ("cudaMalloc", r"\d+ bytes of device memory: found CUDA error 2 \(out of memory\)"),
        ("cudaMemcpyAsync", r"copying \w+: found CUDA error 1"),
        ("setInputShape", r"refuses the shape \[.*\] of \w+ \(it said: the shape was not accepted\)"),
        ("enqueueV3", r"refuses to run \(it said: out of registers\), expected it to work; .*rebuild with"),
        ("cudaStreamSynchronize", r"found CUDA error 1"),
    ],
)
def test_a_call_that_fails_becomes_a_sentence(call: str, expected: str, cpp_runtimes: Path, tmp_path: Path) -> None:
    bundle = bundles.with_plans(tmp_path / "toy.bundle")
    done = building.attempt([cpp_runtimes / "plain", bundle, "2", "1", "2", "tensorrt"], env={"STAND_IN_FAIL": call})
    assert done.returncode == 1
    assert re.search(expected, done.stderr), done.stderr


def test_tensorrt_plans_are_of_one_size(library: Library, tmp_path: Path) -> None:
    bundle = bundles.with_plans(tmp_path / "toy.bundle", "uncond")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["pipeline"]["multiple"] = 2
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Failed, match=r"BACKEND: .*16 x 8 with backend 'tensorrt', whose plans take 8 x 8 alone; .*overlap"):
        open_c(library, bundle, backend="tensorrt", height=16, width=8)
    open_c(library, bundle, backend="tensorrt", height=8, width=8).free()


def test_tensorrt_has_fp16_only_and_a_bundle_without_plans_is_told(library: Library, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"BACKEND: .*found 'f32', expected fp16"):
        open_c(library, bundles.with_plans(tmp_path / "toy.bundle"), backend="tensorrt", precision="f32")
    with pytest.raises(Failed, match=r"BACKEND: .*tensorrt.*expected one that the bundle lists"):
        open_c(library, samplers.bundle("form1"), backend="tensorrt")
    assert mock_tensorrt.VERSION != bundles.STAND_IN_VERSION


# ---- a child of fork() -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["openvino", "tensorrt"])
def test_a_child_of_fork_is_refused_and_nothing_hangs(backend: str, library: Library, tmp_path: Path) -> None:
    bundle = samplers.bundle("form1") if backend == "openvino" else bundles.with_plans(tmp_path / "toy.bundle")
    with open_c(library, bundle, backend=backend) as sampler:
        expected = sampler.sample(2, seed=1, steps=2).images

        def others() -> str:
            for call in (lambda: sampler.sample(1), sampler.clone, lambda: open_c(library, bundle, backend=backend)):
                with pytest.raises(Failed, match=r"BACKEND: .*fork\(\) leaves behind; .*with backend native"):
                    call()
            sampler.free()
            return "refused"

        assert forked(others) == "refused"
        np.testing.assert_array_equal(sampler.sample(2, seed=1, steps=2).images, expected)


# ---- a library without them --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["openvino", "tensorrt"])
def test_a_library_without_a_backend_names_the_option(backend: str, cpp_library: Path, tmp_path: Path) -> None:
    bundle = samplers.bundle("form1") if backend == "openvino" else bundles.with_plans(tmp_path / "toy.bundle")
    with pytest.raises(Failed, match=rf"BACKEND: .*compiled without it.*-DDIFFUSEVAE_{backend.upper()}=ON"):
        open_c(Library(cpp_library), bundle, backend=backend)


WITHOUT = {
    r"backend 'openvino', which runs it for 'native': .*compiled without it.*=ON": ("onnxruntime", "openvino"),
    "found that onnxruntime runs it for 'native', expected openvino among them": ("onnxruntime",),
}


@NEEDS_NATIVE
@pytest.mark.parametrize("refusal", WITHOUT)
def test_a_graph_whose_runtime_a_library_lacks(
    refusal: str, cpp_library: Path, native_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = share(native_bundle("form1"), tmp_path / "shared", "vae_decoder", WITHOUT[refusal])
    with pytest.raises(Failed, match=rf"BACKEND: .*graph 'vae_decoder': {refusal}"):
        open_c(Library(cpp_library), bundle, backend="native")
