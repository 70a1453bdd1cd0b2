"""Refusals of a plan before and after loading, with what was found, expected, and what rebuilds it."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Sampler, backends
from engine.backends.tensorrt import choice as gpu_choice
from engine.backends.tensorrt import library as tensorrt_library
from engine.backends.tensorrt.plan import covers
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, BackendError, BundleError, DeviceError
from tests import toy
from tests.mock_tensorrt import VERSION, Mock, build_bundle, plan_of
from tests.processes import forked

PROFILE = {"batch": (1, 4, 16), "steps": (1, 10, 1000)}
REBUILD = r"rebuild with: \S*python export/build_engines\.py CKPT --out \S+ --backends tensorrt_rtx --precision fp16"


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    return Mock().install(monkeypatch)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build_bundle(tmp_path_factory.mktemp("plans") / "toy.bundle"))


def load(bundle: Bundle, graph: str = "denoiser", **options: Any) -> Any:
    return backends.load(bundle, graph, **{"backend": "tensorrt_rtx", "precision": "fp16", **options})


def refused(mock: Mock, bundle: Bundle, message: str, **options: Any) -> None:
    with pytest.raises(BackendError, match=message):
        load(bundle, **options)
    assert mock.leaks() == {}


# ---- before deserialising ----------------------------------------------------------------------------


def deserialised(mock: Mock) -> int:
    return mock.cuda.count("deserialize_cuda_engine")


BAD_PLANS = {
    "text": (b"this is no plan" * 9, r"found 135 bytes that begin with b'this', expected a plan, which begins with b'vtrt'"),
    "one byte": (b"v", r"found 1 bytes that begin with b'v', expected a plan"),
    "header alone": (b"vtrt" + bytes(20), r"found 24 bytes, expected a plan, which is longer"),
    "truncated": (plan_of(b"x" * 999, PROFILE)[:500], r"found 500 bytes, expected \d+ as the plan's header says"),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_what_is_no_plan_never_reaches_the_library(mock: Mock, tmp_path: Path, case: str) -> None:
    data, message = BAD_PLANS[case]
    damaged = Bundle.open(build_bundle(tmp_path / "b", plans={"denoiser": data}))
    refused(mock, damaged, rf"tensorrt_rtx fp16 denoiser: {message}.*{REBUILD}")
    assert deserialised(mock) == 0


@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "text"])
def test_a_plan_that_is_not_the_one_that_was_hashed_is_refused(mock: Mock, tmp_path: Path, damage: str) -> None:
    opened = Bundle.open(build_bundle(tmp_path / "b"))
    file = tmp_path / "b" / "denoiser.tensorrt_rtx.fp16.plan"
    data = file.read_bytes()
    flipped = data[:99] + bytes([data[99] ^ 1]) + data[100:]
    file.write_bytes({"flipped": flipped, "truncated": data[:-1], "emptied": b"", "text": b"no"}[damage])
    with pytest.raises(BundleError, match=r"denoiser\.tensorrt_rtx\.fp16\.plan: found (SHA-256 .*|\d+ bytes), expected"):
        load(opened)
    assert deserialised(mock) == 0
    assert mock.leaks() == {}
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / "b")


def test_a_plan_of_another_version_is_refused(mock: Mock, tmp_path: Path) -> None:
    other = Bundle.open(build_bundle(tmp_path / "b", version="1.6.0.5"))
    message = rf"found a plan of tensorrt_rtx 1\.6\.0\.5, expected one of {VERSION}, the version installed.*{REBUILD}"
    refused(mock, other, message)
    assert deserialised(mock) == 0


@pytest.mark.parametrize(
    ("targets", "found"), [(("sm80", "sm89"), "sm80, sm89"), ((), "no target"), (("sm90+",), r"sm90\+"), (("all",), "all")]
)
def test_a_plan_for_another_gpu_is_refused(mock: Mock, tmp_path: Path, targets: tuple[str, ...], found: str) -> None:
    other = Bundle.open(build_bundle(tmp_path / "b", targets=targets))
    message = rf"found a plan for {found}, expected one for sm86, which Mock GPU \(device 0\) is; {REBUILD} --targets sm86"
    refused(mock, other, message)
    assert deserialised(mock) == 0


def test_targets_are_compared_as_they_are_meant() -> None:
    assert covers(("sm80", "sm86"), (8, 6))
    assert covers(("sm80+",), (12, 0))
    assert covers(("sm120",), (12, 0))
    assert not covers(("sm120",), (8, 6))
    assert not covers(("sm86+",), (8, 0))
    assert not covers((), (8, 6))
    assert not covers(("cuda", "smXY"), (8, 6))


def test_a_bundle_without_plans_names_the_command(mock: Mock, tmp_path: Path) -> None:
    plain = Bundle.open(toy.build_bundle(tmp_path / "b", backends=("tensorrt_rtx",)))
    with pytest.raises(
        BundleError, match=r"expected tensorrt_rtx fp16 denoiser; rebuild the bundle with: .*--backends tensorrt_rtx"
    ):
        load(plain)
    assert mock.leaks() == {}


def test_a_library_that_is_missing_says_how_to_get_it(mock: Mock, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_choice.util, "find_spec", lambda name: None)
    with pytest.raises(
        BackendError, match=r"'tensorrt_rtx': found that it is not installed; .*pip install tensorrt-rtx-cu13"
    ):
        load(bundle)


def test_a_library_that_does_not_import_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendError, match=r"cannot be imported .*pip install tensorrt-rtx-cu13"):
        tensorrt_library.load_library("tensorrt_rtx")


def test_a_library_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mock = Mock("tensorrt", "10.0.1").install(monkeypatch)
    old = Bundle.open(build_bundle(tmp_path / "b", backend="tensorrt", version="10.0.1"))
    message = r"'tensorrt': found version 10\.0\.1, expected 10\.1 or newer; upgrade it with: pip install --upgrade tensorrt"
    refused(mock, old, message, backend="tensorrt")


def test_versions_are_compared_as_numbers() -> None:
    assert tensorrt_library.version_of("10.13.0rc1") == (10, 13)
    assert tensorrt_library.version_of("1.10") > tensorrt_library.version_of("1.9.5")


# ---- after deserialising -----------------------------------------------------------------------------


def test_a_plan_that_does_not_load_has_the_librarys_last_words(mock: Mock, bundle: Bundle) -> None:
    mock.cuda.fail_call = "deserialize_cuda_engine"
    words = r"\(it said: ERROR: Error Code 1: Serialization assertion failed\)"
    refused(mock, bundle, rf"does not load {words}, expected .*{REBUILD} --targets sm86")


WRONG_GRAPHS = {
    "another size": (toy.denoiser(16, True, False), r"found x as float32\[None, 3, 16, 16\] in the file, expected x flo"),
    "no condition": (toy.denoiser(8, False, False), r"found cond as nothing\[\] in the file, expected cond float32"),
    "another graph": (toy.vae_decoder(8, 4), r"found x as nothing\[\] in the file"),
    "one more": (toy.denoiser(8, True, True), r"found row as float32\[None, 6\] in the file, expected row float32\[1, 6\]"),
}


@pytest.mark.parametrize("case", WRONG_GRAPHS)
def test_tensors_other_than_the_manifests_are_refused(mock: Mock, tmp_path: Path, case: str) -> None:
    model, message = WRONG_GRAPHS[case]
    wrong = Bundle.open(build_bundle(tmp_path / "b", plans={"denoiser": plan_of(model.SerializeToString(), PROFILE)}))
    refused(mock, wrong, message)


def test_a_batch_beyond_the_profile_names_the_range(mock: Mock, bundle: Bundle) -> None:
    with load(bundle, "vae_decoder") as graph:
        with pytest.raises(
            BackendError,
            match=rf"input z: found \[17, 4\], expected 17 to be in 1\.\.16, the range .*{REBUILD} --trt-batch 1 17 17",
        ):
            graph(z=np.zeros((17, 4), np.float32))
        assert graph(z=np.zeros((16, 4), np.float32))["image"].shape == (16, 3, 8, 8), "the graph goes on working"
    assert mock.leaks() == {}


def test_guidance_needs_room_for_two(mock: Mock, tmp_path: Path) -> None:
    with Sampler(build_bundle(tmp_path / "b", batch=(1, 1, 1)), "tensorrt_rtx") as sampler:
        assert sampler.max_batch == 1
        assert sampler.sample(3, steps=2, seed=0).timings.chunks == 3
        with pytest.raises(BackendError, match=r"input x: found \[2, 3, 8, 8\], expected 2 to be in 1\.\.1, the range"):
            sampler.sample(1, steps=2, seed=0, guidance=0.5)
    assert mock.leaks() == {}


def test_more_steps_than_the_profile_name_the_range(mock: Mock, tmp_path: Path) -> None:
    models = toy.models_of(1, 8, 4, False)
    table = plan_of(models["timestep_table"].SerializeToString(), {**PROFILE, "steps": (1, 4, 8)})
    with Sampler(build_bundle(tmp_path / "b", plans={"timestep_table": table}), "tensorrt_rtx") as sampler:
        with pytest.raises(
            BackendError,
            match=r"input timesteps: found \[10\], expected 10 to be in 1\.\.8, the range that the plan was built for",
        ):
            sampler.sample(1, steps=10, seed=0)
        assert len(sampler.sample(1, steps=8, seed=0).timesteps) == 8
    assert mock.leaks() == {}


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("create_runtime_config", "a runtime configuration"),
        ("create_execution_context", "an execution context"),
        ("set_input_shape", r"the shape \[2, 4\] of z"),
        ("set_tensor_address", "the address of z"),
        ("execute_async_v3", "to run"),
    ],
)
def test_a_call_that_the_library_refuses_is_named(mock: Mock, bundle: Bundle, call: str, what: str) -> None:
    with load(bundle, "vae_decoder") as graph:
        mock.cuda.fail_call = call
        with pytest.raises(
            BackendError, match=rf"found that tensorrt_rtx refuses {what} \(it said: nothing\), expected it to work"
        ):
            graph(z=np.zeros((2, 4), np.float32))
        mock.cuda.disarm()
        assert graph(z=np.zeros((2, 4), np.float32))["image"].shape == (2, 3, 8, 8)
    assert mock.leaks() == {}


# ---- as a graph --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_one_code_runs_both_libraries(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = {"tensorrt": "11.0.0.14", "tensorrt_rtx": VERSION}[name]
    mock = Mock(name, version).install(monkeypatch)
    opened = Bundle.open(build_bundle(tmp_path / "b", backend=name, version=version))
    image = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    cpu = backends.load(opened, "vae_encoder", backend="onnxruntime")
    with load(opened, "vae_encoder", backend=name) as graph:
        assert (graph.backend, graph.precision, graph.name) == (name, "fp16", "vae_encoder")
        for n in (3, 1, 3):
            expected = {key: value.copy() for key, value in cpu(image=image[:n].copy()).items()}
            found = graph(image=image[:n].copy())
            assert all(np.allclose(found[key], expected[key], atol=1e-6) for key in expected)
        twin = graph.clone()
    assert np.allclose(twin(image=image)["mu"], expected["mu"], atol=1e-6), "a clone outlives what it was made from"
    twin.close()
    assert mock.leaks() == {}


def test_other_precisions_are_refused(mock: Mock, bundle: Bundle) -> None:
    refused(mock, bundle, r"tensorrt_rtx: found precision 'f32', expected one of those it has: fp16", precision="f32")
    with pytest.raises(BackendError, match=r"found precision 'bf16'"):
        Sampler(bundle, "tensorrt_rtx", "bf16")
    with load(bundle, "timestep_table") as table:
        assert table.precision == "f32", "as the manifest says of it"
    assert mock.leaks() == {}


def test_a_child_of_fork_is_refused_and_has_the_cpu(mock: Mock, bundle: Bundle) -> None:
    with Sampler(bundle, "tensorrt_rtx") as sampler:
        expected = sampler.sample(2, steps=2, seed=0).images

        def others() -> str:
            again = [lambda: Sampler(bundle, "tensorrt_rtx"), lambda: load(bundle)]
            for call in (lambda: sampler.sample(1), sampler.clone, *again):
                with pytest.raises(DeviceError, match=r"fork.*before CUDA is first used"):
                    call()
            sampler.close()
            with Sampler(bundle, "onnxruntime") as cpu:
                return str(np.abs(cpu.sample(2, steps=2, seed=0).images.astype(int) - expected).max())

        assert forked(others) == "0"
        np.testing.assert_array_equal(sampler.sample(2, steps=2, seed=0).images, expected)
    assert mock.leaks() == {}


# ---- which backend -----------------------------------------------------------------------------------


def test_auto_takes_a_gpu_only_where_the_plans_fit(
    mock: Mock, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backends.choose(bundle)[:2] == ("tensorrt_rtx", "fp16")
    assert backends.RULE in backends.choose(bundle).reason
    assert backends.choose(bundle, precision="fp16")[:2] == ("tensorrt_rtx", "fp16")
    assert backends.choose(bundle, precision="f32")[:2] == ("onnxruntime", "f32")
    other = Bundle.open(build_bundle(tmp_path / "b", targets=("sm120",)))
    assert backends.choose(other)[0] == "onnxruntime"


@pytest.mark.parametrize("lacks", ["device", "driver"])
def test_auto_never_takes_a_gpu_that_is_not_there(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    mock = Mock(devices=()).install(monkeypatch)
    if lacks == "driver":
        missing = RuntimeError("no libcuda")
        monkeypatch.setattr(mock.cuda, "cuInit", lambda flags: (_ for _ in ()).throw(missing), raising=False)
    assert backends.choose(bundle)[:2] == ("onnxruntime", "f32")
    there, reason = backends.available()["tensorrt_rtx"]
    assert not there
    assert {"device": "NO_DEVICE", "driver": "no libcuda"}[lacks] in reason
    with pytest.raises(
        BackendError, match=r"backend 'tensorrt_rtx': found that it is not usable: .* is installed, but cuInit"
    ):
        Sampler(bundle, "tensorrt_rtx")
    assert mock.leaks() == {}


def test_the_cpu_takes_no_device(bundle: Bundle) -> None:
    with pytest.raises(
        ArgumentError, match=r"device: found 0 with backend 'onnxruntime', which runs on the CPU; expected none"
    ):
        Sampler(bundle, "onnxruntime", device=0)


def test_a_wrong_ordinal_is_named(mock: Mock, bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match=r"device: found number 3, expected 0, the only one"):
        Sampler(bundle, "tensorrt_rtx", device=3)
    assert mock.leaks() == {}


# ---- the real library, without a GPU -----------------------------------------------------------------


@pytest.mark.skipif(util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_real_library_has_what_is_called() -> None:
    library = tensorrt_library.load_library("tensorrt_rtx")
    calls = {
        library.Runtime: ("deserialize_cuda_engine",),
        library.ICudaEngine: (
            "num_io_tensors", "get_tensor_name", "get_tensor_dtype", "get_tensor_shape", "get_tensor_profile_shape",
            "device_memory_size_v2", "create_runtime_config", "create_execution_context",
        ),
        library.IRuntimeConfig: (
            "set_execution_context_allocation_strategy", "dynamic_shapes_kernel_specialization_strategy",
        ),
        library.IExecutionContext: (
            "set_device_memory", "set_input_shape", "set_tensor_address", "get_tensor_shape", "execute_async_v3",
            "is_stream_capturable",
        ),
    }  # fmt: skip
    for kind, names in calls.items():
        assert [name for name in names if not hasattr(kind, name)] == []
    assert library.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    assert library.DynamicShapesKernelSpecializationStrategy.EAGER is not None
    assert all(hasattr(library.DataType, name) for name in ("FLOAT", "HALF", "INT64", "INT32", "UINT8", "BOOL", "INT8"))


@pytest.mark.skipif(util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_real_librarys_refusal_becomes_an_error_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tensorrt_library.load_library("tensorrt_rtx")
    opened = Bundle.open(build_bundle(tmp_path / "b", version=library.__version__))
    mock = Mock(version=library.__version__).install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    refused(mock, opened, r"a plan that tensorrt_rtx [\d.]+ does not load \(it said: .*Error Code.*\), expected one")


