"""`make gpu-check`: a clear message where there is no GPU, a report that keeps its schema where there is one."""

from __future__ import annotations

import compileall
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from benchmarks.gpu import check, golden, torch_chain
from benchmarks.machine import BenchmarkError
from engine.bundle.reader import Bundle
from engine.device import context as device
from tests.mock_tensorrt import Mock, build_bundle

ROOT = Path(__file__).resolve().parents[2]
GOLDEN_ROW = {"model": "m", "chain": "c", "first_step": None, "first_step_bound": 0.1, "mean": 0.0, "bound": 0.1, "ok": True}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(check.main, list(arguments))


def without_torch() -> None:
    raise BenchmarkError("found no torch, expected it; install it")


def test_without_a_driver_it_ends_with_a_clear_message(tmp_path: Path) -> None:
    device.presence.cache_clear()
    if device.presence()[0]:
        pytest.skip("this machine has a GPU")
    result = run("--out", str(tmp_path / "report.json"))
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "expected" in result.output
    assert "nvidia-smi" in result.output or "diffusevae-engine[cuda]" in result.output
    assert not list(tmp_path.iterdir()), "nothing is built before a GPU is found"


def test_without_a_device_it_ends_with_a_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mock(devices=()).install(monkeypatch)
    result = run("--out", str(tmp_path / "report.json"))
    assert (result.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "CUDA_ERROR_NO_DEVICE (no device), expected an NVIDIA GPU" in result.output


def test_a_device_without_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    Mock().install(monkeypatch)
    monkeypatch.setattr("engine.backends.tensorrt.choice.util.find_spec", lambda name: None)
    with pytest.raises(
        BenchmarkError, match=r"tensorrt_rtx: not installed; .*pip install tensorrt-rtx-cu13.*; tensorrt: not"
    ):
        check.choose_backend(None)


def test_a_failed_build_is_said(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="found that the build failed"):
        check.build(tmp_path / "none.ckpt", tmp_path / "b", "tensorrt_rtx", "sm86", 4, lambda text: None)


@pytest.mark.parametrize("kind", ["form1", "uncond"])
def test_the_report_keeps_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mock = Mock().install(monkeypatch)
    bundle = build_bundle(tmp_path / "b", kind)
    loads = [0.25]
    monkeypatch.setattr("os.getloadavg", lambda: (loads[-1], 0.0, 0.0))

    def build(*_: object) -> tuple[Path, float]:
        loads.append(9.0)  # a build keeps the machine busy
        return bundle, 1.5

    monkeypatch.setattr(check, "build", build)
    monkeypatch.setattr(golden, "check", lambda *_: [GOLDEN_ROW])
    monkeypatch.setattr(torch_chain, "_torch", without_torch)
    out = tmp_path / "report.json"
    result = run("--backend", "tensorrt_rtx", "--batch", "2", "--steps", "2", "--repeats", "3", "--out", str(out))
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    jsonschema.validate(report, json.loads((ROOT / "benchmarks/schema/gpu_check.schema.json").read_text()))
    assert report["machine"]["load_average"] == 0.25
    assert [row["mean"] < 1e-4 for row in report["agreement"]] == [True] * (4 if kind == "form1" else 2)
    states = {row["contestant"]: row for row in report["results"]}
    assert states["tensorrt_rtx graph"]["launch"] == "graph"
    assert states["tensorrt_rtx no graph"]["launch"] == "plain"
    for name in ("onnxruntime-cuda fp16", "torch eager fp16", "torch.compile fp16"):
        assert states[name]["status"] == "skipped"
        assert "expected" in states[name]["reason"], name
    assert mock.leaks() == {}


def test_another_result_than_float32s_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mock().install(monkeypatch)
    opened = Bundle.open(build_bundle(tmp_path / "b"))
    monkeypatch.setattr(check, "CHAIN_MEAN", -1.0)
    assert [row["ok"] for row in check.compare(opened, "tensorrt_rtx", lambda text: None)] == [False] * 4


def test_torch_without_a_gpu_is_skipped_with_the_reason() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BenchmarkError, match="without a usable GPU, expected a CUDA build"):
        torch_chain._torch()


def test_the_examples_compile_and_say_that_they_are_unverified() -> None:
    for name in ("gpu_torch.py", "gpu_pycuda.py"):
        file = ROOT / "examples" / name
        assert compileall.compile_file(file, quiet=1, force=True)
        text = file.read_text()
        assert len(text.splitlines()) <= 40
        assert "not yet run on a GPU" in text
