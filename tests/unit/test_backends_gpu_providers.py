"""The execution providers that were asked for are those that run; anything else is an error.

No GPU is needed: the code is that of the CPU provider, and what onnxruntime-gpu does without a device (it runs on the CPU
and writes a line to a log) is played by a session that reports other providers.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from engine import backends
from engine.backends import onnxruntime_cuda, onnxruntime_gpu, onnxruntime_tensorrt
from engine.backends.onnxruntime import CPU, OnnxRuntime, Runtime, load_on, open_session
from engine.backends.onnxruntime_cuda import OnnxRuntimeCuda
from engine.backends.onnxruntime_tensorrt import OnnxRuntimeTensorRt
from engine.bundle.reader import Bundle
from engine.bundle.writer import write_bundle
from engine.errors import ArgumentError, BackendError, DeviceError
from tests import toy
from tests.processes import forked

GPU = [OnnxRuntimeCuda, OnnxRuntimeTensorRt]
NAMES = ("onnxruntime-cuda", "onnxruntime-tensorrt")
# The GPU runtimes' own code and settings on the provider that this machine has.
PLAYED = Runtime("onnxruntime-cuda", {"CPUExecutionProvider": {}}, ("f32", "fp16"), "pip install onnxruntime-gpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy whose half denoiser is one half of the float32 one, so that a test sees which of the two ran."""
    models = toy.models_of(1, 8, 4, False)
    manifest = toy.manifest_of(models, 1, 8, 4, False, ["onnxruntime", *NAMES])
    half = toy.denoiser(8, True, False)
    for tensor in half.graph.initializer:
        if tensor.name == "a":
            tensor.CopyFrom(toy.numpy_helper.from_array(np.float32(0.05), "a"))
    entry = toy.graph_entry("denoiser", half)
    manifest["graphs"]["denoiser.fp16"] = entry | {"file": "denoiser.fp16.onnx", "precision": "fp16"}
    files = {f"{role}.onnx": model.SerializeToString() for role, model in models.items()}
    path = tmp_path_factory.mktemp("gpu") / "toy.bundle"
    write_bundle(path, manifest, files | {"denoiser.fp16.onnx": half.SerializeToString()})
    return Bundle.open(path)


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = (2, 3, 8, 8)
    return {
        "x": rng.standard_normal(image, np.float32),
        "cond": np.zeros(image, np.float32),
        "row": np.zeros((1, toy.ROW_WIDTH), np.float32),
    }


def pretend(monkeypatch: pytest.MonkeyPatch, built_in: list[str], taken: list[str]) -> list[Any]:
    """onnxruntime says that it has some providers and runs on others; what it is asked for is recorded."""
    asked: list[Any] = []
    real = onnxruntime.InferenceSession

    class Session:
        def __init__(self, data: bytes, options: Any, *, providers: list[Any], enable_fallback: int) -> None:
            asked.append(providers)
            self._session = real(data, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return taken

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built_in)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


class TestOneCodePath:
    def test_the_providers_of_a_session_are_those_asked_for(self, bundle: Bundle) -> None:
        session = open_session(bundle.read_graph("denoiser"), 1)
        assert session.get_providers() == list(CPU.providers) == ["CPUExecutionProvider"]

    @pytest.mark.parametrize(("precision", "factor"), [("f32", 0.1), ("fp16", 0.05)])
    def test_precision_chooses_the_graph(self, bundle: Bundle, precision: str, factor: float) -> None:
        graph = load_on(PLAYED, bundle, "denoiser", precision, 1)
        given = inputs()
        np.testing.assert_allclose(graph(**given)["eps"], factor * given["x"], atol=1e-6)
        assert (graph.backend, graph.precision, graph.name) == ("onnxruntime-cuda", precision, "denoiser")
        twin = graph.clone()
        assert (twin.backend, twin.precision) == (graph.backend, graph.precision)
        with pytest.raises(ArgumentError, match="denoiser: found the inputs x, expected exactly x, cond, row"):
            graph(x=given["x"])
        graph.close()
        with pytest.raises(BackendError, match=r"onnxruntime-cuda graph 'denoiser': found a closed graph"):
            graph(**given)

    def test_the_table_stays_in_float32(self, bundle: Bundle) -> None:
        assert load_on(PLAYED, bundle, "timestep_table", "fp16", 1).precision == "f32"

    def test_a_bundle_without_half_graphs(self, bundle: Bundle) -> None:
        message = r"found no graph 'vae_decoder.fp16', expected one for onnxruntime-cuda in fp16; build .* --precision fp16"
        with pytest.raises(BackendError, match=message):
            load_on(PLAYED, bundle, "vae_decoder", "fp16", 1)

    def test_half_graphs_run_on_the_cpu_too_but_bf16_nowhere(self, bundle: Bundle) -> None:
        given = inputs()
        with OnnxRuntime(bundle, "f32", 1).load("denoiser") as graph:
            whole = np.array(graph(**given)["eps"])
        with OnnxRuntime(bundle, "fp16", 1).load("denoiser") as graph:
            assert (graph.backend, graph.precision) == ("onnxruntime", "fp16")
            assert not np.allclose(graph(**given)["eps"], whole)  # the toy's half graph is another one
        with pytest.raises(BackendError, match=r"onnxruntime: found precision 'bf16', expected .*: f32, fp16"):
            OnnxRuntime.open(bundle, "bf16", 1)
        with pytest.raises(BackendError, match=r"onnxruntime-cuda: found precision 'bf16', expected .*: f32, fp16"):
            OnnxRuntimeCuda.open(bundle, "bf16", 1)


@pytest.mark.parametrize("kind", GPU)
def test_a_child_of_fork_opens_none_and_is_told(
    bundle: Bundle, kind: type[OnnxRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = [*kind.RUNTIME.providers, "CPUExecutionProvider"]
    asked = pretend(monkeypatch, providers, providers)
    opened = kind.open(bundle, "f32", 1)
    graph = opened.graph("denoiser")

    def calls() -> str:
        for call in (lambda: graph(**inputs()), opened.enter_child, lambda: kind.open(bundle, "f32", 1).load("denoiser")):
            with pytest.raises(DeviceError, match=r"fork.*before CUDA is first used"):
                call()
        return f"{len(asked)} opened"

    assert forked(calls) == "1 opened"


class TestAnotherProvider:
    @pytest.mark.parametrize("kind", GPU)
    def test_this_build_does_not_have_it(
        self, bundle: Bundle, kind: type[OnnxRuntime], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built_in = ["AzureExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built_in)
        runtime: Runtime = kind.RUNTIME
        message = (
            rf"{runtime.name}: found that onnxruntime \S+ has the providers AzureExecutionProvider, CPUExecutionProvider, "
            rf"expected {', '.join(runtime.providers)}; .* install what they need with: {re.escape(runtime.install)}"
        )
        with pytest.raises(BackendError, match=message):
            kind.open(bundle, "f32", 1).load("denoiser")

    @pytest.mark.parametrize("kind", GPU)
    @pytest.mark.parametrize("taken", [["CPUExecutionProvider"], ["CUDAExecutionProvider"], []])
    def test_it_is_built_in_but_passed_over(
        self, bundle: Bundle, kind: type[OnnxRuntime], taken: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built_in = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        asked = pretend(monkeypatch, built_in, taken)
        with pytest.raises(BackendError, match=rf"took the providers {', '.join(taken)}, expected .*check the device and"):
            kind.open(bundle, "f32", 1).load("denoiser")
        assert [name for name, _ in asked[0]] == list(kind.RUNTIME.providers)

    @pytest.mark.parametrize("kind", GPU)
    def test_it_is_there(self, bundle: Bundle, kind: type[OnnxRuntime], monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = list(kind.RUNTIME.providers)
        built_in = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        asked = pretend(monkeypatch, built_in, [*wanted, "CPUExecutionProvider"])
        graph = kind.open(bundle, "fp16", 1).load("denoiser")
        assert (graph.backend, graph.precision) == (kind.NAME, "fp16")
        assert dict(asked[0])["CUDAExecutionProvider"] == {"use_tf32": "0"}

    def test_the_real_package_refuses_what_it_does_not_have(self, bundle: Bundle) -> None:
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has the CUDA provider")
        with pytest.raises(BackendError, match=r"expected CUDAExecutionProvider; check the device .*onnxruntime-gpu"):
            OnnxRuntimeCuda.open(bundle, "f32", 1).load("denoiser")


class TestChoice:
    def test_what_is_said_where_the_package_is_missing(self, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
        def missing(name: str) -> str:
            raise onnxruntime_gpu.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(onnxruntime_gpu.metadata, "version", missing)
        for name in NAMES:
            there, reason = backends.available()[name]
            assert not there
            assert "replace the package onnxruntime with: pip install 'onnxruntime-gpu" in reason
            with pytest.raises(BackendError, match=rf"backend '{name}': found that it is not installed; replace"):
                backends.choose(bundle, name)

    def test_without_a_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime_gpu.metadata, "version", lambda _: "1.30")
        monkeypatch.setattr(onnxruntime_gpu, "find_library", lambda _: None)
        there, reason = OnnxRuntimeCuda.available()
        assert not there
        assert reason == "installed (onnxruntime-gpu 1.30) on a machine without an NVIDIA driver; install the driver"

    def test_auto_never_takes_them(self, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path) -> None:
        monkeypatch.setattr(onnxruntime_gpu.metadata, "version", lambda _: "1.30")
        monkeypatch.setattr(onnxruntime_gpu, "find_library", lambda name: "libcuda.so.1")
        assert backends.available()["onnxruntime-cuda"] == (True, "onnxruntime-gpu 1.30, CUDAExecutionProvider")
        assert backends.choose_auto(bundle).backend == "onnxruntime"
        assert "onnxruntime-cuda and onnxruntime-tensorrt are used by name only" in backends.RULE
        assert backends.choose(bundle, "onnxruntime-cuda", "fp16")[:2] == ("onnxruntime-cuda", "fp16")
        assert backends.choose(bundle, "onnxruntime-cuda")[:2] == ("onnxruntime-cuda", "f32")
        only = Bundle.open(toy.build_bundle(tmp_path / "b", backends=NAMES))
        with pytest.raises(BackendError, match="found no usable backend"):
            backends.choose_auto(only)

    def test_settings_are_as_documented(self) -> None:
        assert [backends.backend_class(name) for name in NAMES] == GPU
        assert [kind.NAME for kind in GPU] == list(NAMES)
        assert all(kind.BY_NAME_ONLY and not kind.ON_DEVICE for kind in GPU)
        assert replace(onnxruntime_cuda.RUNTIME, name="x").precisions == ("f32", "fp16")
        assert list(onnxruntime_tensorrt.RUNTIME.providers) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
