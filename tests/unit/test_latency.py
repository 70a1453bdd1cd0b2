"""Does the latency benchmark compare before it times, count what it says, and tell who could not take part?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.latency import bundles, duel, report, run, targets, work
from benchmarks.latency.contestants import EngineRunner, TorchRunner
from benchmarks.latency.field import BY_NAME, CONTESTANTS, Contestant, Task, skip_reason
from benchmarks.latency.plain import PlainRunner, export_plain
from benchmarks.machine import BenchmarkError
from engine.bundle.reader import Bundle
from engine.processor import Processor
from tests import golden_models, toy

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
SCHEMAS = Path(__file__).parents[2] / "benchmarks" / "schema"
GoldenBundle = Callable[[str], Path]
TORCH, ORT = BY_NAME["torch eager f32"], BY_NAME["onnxruntime f32"]


def check_schema(name: str, result: Any) -> None:
    jsonschema.validate(result, json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


def outputs(contestant: Contestant, eps_noise: float, chain_noise: float) -> tuple[Contestant, list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(4)
    eps, x = rng.standard_normal((2, 1, 3, 8, 8)).astype(np.float32)
    return contestant, [eps + np.float32(eps_noise)], x + np.float32(chain_noise)


def test_agreement_reports_both_errors() -> None:
    rows = duel.agreement([outputs(TORCH, 0, 0), outputs(ORT, 1e-6, 1e-5)], batch=1)
    assert [row["contestant"] for row in rows] == [TORCH.name, ORT.name]
    assert rows[0]["step_error"] == 0.0
    assert 0 < rows[1]["step_error"] < 1e-4
    assert rows[1]["chain_error"] == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ((0.01, 0.0), "onnxruntime f32: eps of one step differs by"),
        ((0.0, 0.01), "onnxruntime f32: image of a chain differs by 0.01, more than 0.002"),
        ((np.nan, 0.0), "eps of one step differs by inf"),
    ],
)
def test_outputs_that_disagree_are_refused(planted: tuple[float, float], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        duel.agreement([outputs(TORCH, 0, 0), outputs(ORT, *planted)], batch=1)


def golden_task(golden_bundle: GoldenBundle, name: str) -> Task:
    path = golden_bundle(name)
    return Task(path, path.with_suffix(".ckpt"), golden_models.build_options(name), steps=3, threads=1)


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_the_torch_contestant_makes_the_engines_images(golden_bundle: GoldenBundle, name: str) -> None:
    task = golden_task(golden_bundle, name)
    ours, theirs = EngineRunner(ORT, task), TorchRunner(TORCH, task)
    a, b = ours.run(2, 7, 3), theirs.run(2, 7, 3)
    assert duel.mean_difference(a.x, b.x) < 2e-4
    assert len(a.calls_ms) == len(b.calls_ms) == 3
    manifest = ours._sampler.bundle.manifest
    for inputs in duel.check_inputs(manifest.model, manifest.schedule.T, 2):
        assert duel.relative_error(ours.eps(*inputs), theirs.eps(*inputs)) < 1e-5


def test_latency_of_two_processes_is_what_its_schema_promises(golden_bundle: GoldenBundle, tmp_path: Path) -> None:
    skip = [contestant.name for contestant in CONTESTANTS if contestant not in (TORCH, ORT)]
    task, told = golden_task(golden_bundle, "form1"), list[str]()
    schedule = run.Schedule((2,), duel.Plan(rounds=2, repeats=1, seconds=1.0), tuple(skip))
    result = run.measure([task], schedule, told.append, roof=False)
    check_schema("latency", result)
    model = result["models"][0]
    by_name = {row["contestant"]: row for row in model["results"]}
    assert set(by_name) == {TORCH.name, ORT.name}
    assert by_name[ORT.name]["total_ms"]["n"] == 2
    assert by_name[ORT.name]["step_ms"]["n"] == 6
    assert by_name[TORCH.name]["speedup"] == 1.0
    assert by_name[TORCH.name]["rest"] is None
    assert by_name[ORT.name]["rest"]["percent_of_step"] < by_name[ORT.name]["rest"]["all_but_denoiser_percent"]
    # The engine's process never loads torch, and its memory is its own.
    assert by_name[ORT.name]["peak_rss_mb"] < by_name[TORCH.name]["peak_rss_mb"]
    rate = model["work"]["gflop"] * 2 / by_name[ORT.name]["step_ms"]["p50"]  # GFLOP a millisecond
    assert by_name[ORT.name]["achieved"]["tflops"] == pytest.approx(rate, rel=0.1, abs=1e-4)
    assert f"| 2 | {ORT.name} | " in run.document(result)
    text = run.told(result)
    assert "skipped: left out with --skip" in text
    assert ORT.name in text


def test_latency_refuses_a_bundle_that_is_not_of_the_checkpoint(golden_bundle: GoldenBundle, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the package torch is not installed")
    state = golden_models.state_dict("form1")
    key = next(key for key in state if key.startswith("target_network.") and state[key].ndim == 4)
    state[key] = state[key] * 1.01
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    task = replace(golden_task(golden_bundle, "form1"), checkpoint=tmp_path / "other.ckpt")
    skip = [contestant.name for contestant in CONTESTANTS if contestant not in (TORCH, ORT)]
    with pytest.raises(BenchmarkError, match=r"contestants disagree at batch 1 .* rebuild the bundle"):
        run.measure_model(task, run.Schedule((1,), duel.Plan(1, 1, 1.0), tuple(skip)), lambda _: None)


def test_a_batch_that_would_take_too_long_is_left_out_and_told(golden_bundle: GoldenBundle) -> None:
    skip = tuple(contestant.name for contestant in CONTESTANTS if contestant != ORT)
    schedule = run.Schedule((1, 1000), duel.Plan(1, 1, 1.0), skip, longest=1e-3)
    model = run.measure_model(golden_task(golden_bundle, "form1"), schedule, lambda _: None)
    assert {row["batch"] for row in model["results"]} == {1}
    assert model["left_out"][0]["batch"] == 1000
    assert "longer than --longest 0.001" in model["left_out"][0]["reason"]


@pytest.mark.parametrize("name", ["form1", "form1_zcond", "uncond"])
def test_a_plain_export_makes_the_engines_images(name: str, golden_bundle: GoldenBundle, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the package torch is not installed")
    task = golden_task(golden_bundle, name)
    assert task.checkpoint is not None
    export_plain(task.checkpoint, task.options, tmp_path / "plain.onnx")
    theirs = PlainRunner(BY_NAME["plain onnxruntime f32"], replace(task, plain=tmp_path / "plain.onnx"))
    ours = EngineRunner(ORT, task)
    assert duel.mean_difference(ours.run(2, 7, 3).x, theirs.run(2, 7, 3).x) < 2e-4
    manifest = ours._sampler.bundle.manifest
    for inputs in duel.check_inputs(manifest.model, manifest.schedule.T, 2):
        assert duel.relative_error(ours.eps(*inputs), theirs.eps(*inputs)) < 1e-5


def test_work_counts_multiply_adds_and_weights() -> None:
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", floats, [8, 3, 3, 3], [0.0] * 216)
    matrix = helper.make_tensor("m", floats, [16, 5], [0.0] * 80)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["a"]),
        helper.make_node("MatMul", ["a", "m"], ["o"]),
    ]
    x = helper.make_tensor_value_info("x", floats, ["batch", 3, 16, 16])
    o = helper.make_tensor_value_info("o", floats, ["batch", 8, 16, 5])
    graph = helper.make_graph(nodes, "g", [x], [o], [weight, matrix])
    found = work.count(helper.make_model(graph).SerializeToString())
    assert found == work.Work(flop=2 * 8 * 16 * 16 * 27 + 2 * 8 * 16 * 5 * 16, weights=216 + 80)


def test_targets_are_judged_only_where_they_hold() -> None:
    def row(contestant: str, ms: float) -> dict[str, Any]:
        times = {"total_ms": {"p50": 10 * ms}, "step_ms": {"p50": ms}, "rest": {"percent_of_step": 2.0}}
        return {"contestant": contestant, "batch": 1, **times}

    times = {"native bf16": 5.0, "openvino bf16": 13.0, "torch eager f32": 40.0, "openvino f32": 4.0, "native int8": 2.0}
    models = [{"name": "cifar10-random", "results": [row(name, ms) for name, ms in times.items()]}]
    rows = [t for t in targets.judge(models, "amx") if t["model"] == "cifar10"]
    judged = {(t["ours"], t["peer"], t["measure"]): t for t in rows if t["batch"] == 1}
    assert (judged["native bf16", "openvino bf16", "step_ms"]["found"], len(rows)) == (2.6, 18)
    assert judged["native bf16", "openvino bf16", "step_ms"]["verdict"] == "pass"
    assert judged["native bf16", "torch eager f32", "total_ms"]["verdict"] == "miss"  # 8 times, of 10
    assert judged["native bf16", None, "step_ms"]["verdict"] == "pass"
    assert judged["native int8, all layers", "openvino bf16", "step_ms"]["found"] is None
    assert judged["native int8", "openvino f32", "step_ms"]["verdict"] == "no verdict"
    for isa, holding in {"avx512_bf16": {"avx512", "any"}, "avx512": {"avx512", "any"}, "avx2": {"any"}}.items():
        found = targets.judge(models, isa)
        assert {t["family"] for t in found if t["verdict"] != "no verdict"} == holding
    assert {t["verdict"] for t in targets.judge(models, None)} == {"no verdict"}
    assert "instruction set avx2" in targets.text(targets.judge(models, "avx2"), "avx2")


def test_a_contestant_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"onnxruntime f32: found BundleError: .*nothing that can be read"):
        duel.Process(ORT, Task(tmp_path / "none.bundle", None, {}, 3, 1))


def test_contestants_that_cannot_run_here_are_listed_with_the_reason() -> None:
    task = Task(Path("x.bundle"), None, {}, 10, 1)
    plain, tiles = Processor("old", "x86_64", frozenset({"avx2"})), Processor("new", "x86_64", frozenset({"amx_bf16"}))
    there = {"openvino": (True, "openvino 1"), "onnxruntime": (False, "not installed; install it")}
    assert "no bf16" in str(skip_reason(BY_NAME["openvino bf16"], task, plain, there))
    assert skip_reason(BY_NAME["openvino bf16"], task, tiles, there) is None
    assert skip_reason(ORT, task, plain, there) == "not installed; install it"
    assert "no checkpoint" in str(skip_reason(TORCH, task, plain, there))


def test_percentiles_and_the_share_of_everything_but_networks() -> None:
    figures = report.percentiles([float(value) for value in range(1, 101)])
    assert figures == {"mean": 50.5, "p50": 50.5, "p90": 90.1, "p99": 99.01, "n": 100}
    record = duel.Record(0.0, 0.0, 0.0)
    stages = {"vae": 3.0, "table": 1.0, "noise": 0.5, "update": 0.2, "post": 0.1}
    record.add(SimpleNamespace(x=None, total_ms=26.0, calls_ms=[10.0, 10.0], stages_ms=stages))  # type: ignore[arg-type]
    rest = report.rest_of(record, step_ms=10.0)
    assert rest == {"percent_of_step": 10.0, "update_percent": 1.0, "all_but_denoiser_percent": 30.0}


def test_a_bundle_of_another_checkpoint_is_built_again(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    assert not bundles.is_current(tmp_path / "none.bundle", tmp_path / "a.ckpt", ["onnxruntime"])
    toy.build_bundle(tmp_path / "a.bundle")
    assert not bundles.is_current(tmp_path / "a.bundle", tmp_path / "a.ckpt", ["onnxruntime"])


def test_a_bundle_without_a_wanted_precision_is_built_again(
    native_bundle: Callable[..., Path], golden_bundle: GoldenBundle
) -> None:
    path, checkpoint = native_bundle("form1"), golden_bundle("form1").parent / "form1.ckpt"
    backends = Bundle.open(path).manifest.backends
    assert bundles.is_current(path, checkpoint, backends, ["f32", "bf16"])
    assert not bundles.is_current(path, checkpoint, backends, ["f32", "bf16", "int8"])
