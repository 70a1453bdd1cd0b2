"""The latency benchmark: compared before timed, counted as stated, and who could not take part or failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.latency import bundles, calls, duel, plots, report, run, targets, work
from benchmarks.latency.contestants import EngineRunner, TorchRunner
from benchmarks.latency.field import BY_NAME, CONTESTANTS, Contestant, Run, Task, skip_reason
from benchmarks.latency.plain import PlainRunner, export_plain
from benchmarks.machine import BenchmarkError
from engine.bundle.reader import Bundle
from engine.processor import Processor
from tests import golden_models, toy
from tests.latency_tasks import FACTS, OPENVINO, ORT, TORCH, GoldenBundle, check_schema, golden_task


def only(*contestants: Contestant) -> tuple[str, ...]:
    """What --skip leaves out so that these remain."""
    return tuple(contestant.name for contestant in CONTESTANTS if contestant not in contestants)


def outputs(contestant: Contestant, eps_noise: float, chain_noise: float) -> tuple[Contestant, duel.Outputs]:
    rng = np.random.default_rng(4)
    eps, x = rng.standard_normal((2, 1, 3, 8, 8)).astype(np.float32)
    return contestant, ([eps + np.float32(eps_noise)], x + np.float32(chain_noise))


def test_agreement_reports_both_errors() -> None:
    rows, faults = duel.agreement([outputs(TORCH, 0, 0), outputs(ORT, 1e-6, 1e-5)], batch=1)
    assert faults == {}
    assert [row["contestant"] for row in rows] == [TORCH.name, ORT.name]
    assert rows[0]["step_error"] == 0.0
    assert 0 < rows[1]["step_error"] < 1e-4
    assert rows[1]["chain_error"] == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ((0.01, 0.0), "eps of one step differs by 0.0099 from that of torch eager f32, more than 0.0001"),
        ((0.0, 0.01), "image of a chain differs by 0.01 from that of torch eager f32, more than 0.002"),
        ((np.nan, 0.0), "eps of one step differs by inf"),
    ],
)
def test_outputs_that_disagree_are_faults_of_their_contestant(planted: tuple[float, float], message: str) -> None:
    rows, faults = duel.agreement([outputs(TORCH, 0, 0), outputs(ORT, *planted), outputs(OPENVINO, 0, 0)], batch=1)
    assert list(faults) == [ORT.name]
    assert message in faults[ORT.name]
    assert len(rows) == 3
    assert json.dumps(rows, allow_nan=False)


def test_a_reference_that_is_not_finite_condemns_itself_alone() -> None:
    rows, faults = duel.agreement([outputs(TORCH, 0, np.nan), outputs(ORT, 0, 0), outputs(OPENVINO, 0, 0)], batch=1)
    assert list(faults) == [TORCH.name]
    assert {row["reference"] for row in rows} == {ORT.name}


@pytest.mark.parametrize("name", ["form1_zcond", "form2", "uncond"])
def test_the_torch_contestant_makes_the_engines_images(golden_bundle: GoldenBundle, name: str) -> None:
    task = golden_task(golden_bundle, name)
    ours, theirs = EngineRunner(ORT, task), TorchRunner(TORCH, task)
    a, b = ours.run(2, 7, 3), theirs.run(2, 7, 3)
    assert duel.mean_difference(a.x, b.x) < 2e-4
    assert len(a.calls_ms) == len(b.calls_ms) == 3
    for inputs in calls.check_inputs(ours._sampler.bundle.manifest, 2):
        assert duel.relative_error(ours.eps(*inputs), theirs.eps(*inputs)) < 1e-5


def test_latency_of_two_processes_is_what_its_schema_promises(golden_bundle: GoldenBundle, tmp_path: Path) -> None:
    task, told = golden_task(golden_bundle, "form1"), list[str]()
    schedule = run.Schedule((2,), duel.Plan(rounds=2, repeats=1, seconds=1.0), only(TORCH, ORT))
    result = run.measure([task], schedule, FACTS, told.append, roof=False)
    check_schema("latency", result)
    model = result["models"][0]
    assert model["failures"] == []
    assert model["image"] == [3, 16, 16]
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
    text = run.as_text(result)
    assert "skipped: left out with --skip" in text
    assert ORT.name in text


def test_contestants_on_a_bundle_of_another_checkpoint_fail_and_the_rest_is_kept(
    golden_bundle: GoldenBundle, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="the package torch is not installed")
    state = golden_models.state_dict("form1")
    key = next(key for key in state if key.startswith("target_network.") and state[key].ndim == 4)
    state[key] = state[key] * 1.01
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    task = replace(golden_task(golden_bundle, "form1"), checkpoint=tmp_path / "other.ckpt")
    schedule = run.Schedule((1,), duel.Plan(1, 1, 1.0), only(TORCH, ORT))
    result = run.measure([task], schedule, FACTS, lambda _: None, roof=False)
    check_schema("latency", result)
    (model,) = result["models"]
    assert [row["contestant"] for row in model["results"]] == [TORCH.name]
    (failure,) = model["failures"]
    assert (failure["contestant"], failure["batch"]) == (ORT.name, 1)
    assert "rebuild the bundle from the same checkpoint" in failure["reason"]
    assert {entry["name"]: entry["status"] for entry in model["contestants"]}[ORT.name] == "failed"
    assert "FAILED" in run.as_text(result)


class Fake:
    """Stands where a contestant's process stands; `ill` says what goes wrong, by contestant."""

    ill: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, contestant: Contestant, task: Task) -> None:
        self.contestant, self.load_ms, self.closed = contestant, 1.0, False
        self.runs = 0
        if self.ill.get(contestant.name) == "load":
            raise BenchmarkError(f"{contestant.name}: found no memory")

    def ask(self, method: str, *arguments: Any) -> Any:
        ill = self.ill.get(self.contestant.name)
        if method == "eps":
            return arguments[0] + np.float32(ill == "beyond")
        if method == "peak_rss_mb":
            return 1.0
        self.runs += 1
        if ill == "late" and self.runs > 4:
            raise BenchmarkError(f"{self.contestant.name}: found that its process ended")
        stages = dict.fromkeys(("before", "rows", "noise", "update", "after", "post"), 0.1)
        return Run(np.zeros((1, 3, 8, 8), np.float32), 20.0, [9.0] * arguments[2], stages)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("ill", ["load", "beyond", "late"])
def test_a_contestant_that_fails_costs_its_own_times_alone(
    golden_bundle: GoldenBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ill: str
) -> None:
    """All that was timed is in the files, and the exit code says that something is missing."""
    monkeypatch.setattr(duel, "Process", Fake)
    monkeypatch.setattr(Fake, "ill", {ORT.name: ill})
    monkeypatch.setattr(run.roofline, "measure", lambda threads: None)
    monkeypatch.setattr(plots, "draw_latency", lambda result, path: path.touch())
    skip = [word for name in only(TORCH, ORT, OPENVINO) for word in ("--skip", name)]
    task = golden_task(golden_bundle, "form1")
    words = ["--bundle", str(task.bundle), "--checkpoint", str(task.checkpoint), "--threads", "1", "--batch", "1"]
    words += ["--rounds", "2", "--repeats", "2", "--steps", "2", "--out", str(tmp_path / "l.json")]
    done = CliRunner().invoke(run.main, [*words, "--plot", str(tmp_path / "l.png"), *skip])
    assert done.exit_code == 1, done.output
    assert f"found contestants that failed (reasons above), expected none: form1, batch 1: {ORT.name}" in done.output
    result = json.loads((tmp_path / "l.json").read_text())
    check_schema("latency", result)
    (model,) = result["models"]
    assert [row["contestant"] for row in model["results"]] == [TORCH.name, OPENVINO.name]
    assert [row["total_ms"]["n"] for row in model["results"]] == [4, 4]
    assert [failure["contestant"] for failure in model["failures"]] == [ORT.name]
    assert (tmp_path / "l.md").exists()


def test_the_load_is_that_of_before_anything_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = [0.25]
    monkeypatch.setattr("os.getloadavg", lambda: (loads[-1], 0.0, 0.0))

    def build(*_: object) -> Task:
        loads.append(9.0)  # a build keeps the machine busy
        return Task(tmp_path / "x.bundle", None, {}, 10, 1)

    seen: list[Any] = []

    def measure(tasks: object, schedule: object, facts: dict[str, Any], say: object) -> dict[str, Any]:
        seen.append(facts["load_average"])
        raise BenchmarkError("enough")

    monkeypatch.setattr(bundles, "task_of", build)
    monkeypatch.setattr(run, "measure", measure)
    done = CliRunner().invoke(run.main, ["--preset", "cifar10", "--out", str(tmp_path / "l.json")])
    assert (done.exit_code, seen) == (1, [0.25])
    assert "WARNING" not in done.output


def test_a_batch_that_would_take_too_long_is_left_out_and_told(golden_bundle: GoldenBundle) -> None:
    schedule = run.Schedule((1, 1000), duel.Plan(1, 1, 1.0), only(ORT), longest=1e-3)
    model = run.measure_model(golden_task(golden_bundle, "form1"), schedule, lambda _: None)
    assert {row["batch"] for row in model["results"]} == {1}
    assert model["left_out"][0]["batch"] == 1000
    assert "longer than --longest 0.001" in model["left_out"][0]["reason"]


@pytest.mark.parametrize("name", ["form1_zcond", "uncond"])
def test_a_plain_export_makes_the_engines_images(name: str, golden_bundle: GoldenBundle, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the package torch is not installed")
    task = golden_task(golden_bundle, name)
    assert task.checkpoint is not None
    export_plain(task.checkpoint, task.options, tmp_path / "plain.onnx")
    theirs = PlainRunner(BY_NAME["plain onnxruntime f32"], replace(task, plain=tmp_path / "plain.onnx"))
    ours = EngineRunner(ORT, task)
    assert duel.mean_difference(ours.run(2, 7, 3).x, theirs.run(2, 7, 3).x) < 2e-4
    for inputs in calls.check_inputs(ours._sampler.bundle.manifest, 2):
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
    assert judged["native bf16", None, "step_ms"]["verdict"] == "pass"  # 2 % of at most 2
    assert judged["native int8, all layers", "openvino bf16", "step_ms"]["found"] is None
    assert judged["native int8", "openvino f32", "step_ms"]["verdict"] == "no verdict"
    for isa, holding in {"avx512_bf16": {"avx512", "any"}, "avx512": {"avx512", "any"}, "avx2": {"any"}}.items():
        found = targets.judge(models, isa)
        assert {t["family"] for t in found if t["verdict"] != "no verdict"} == holding
    assert {t["verdict"] for t in targets.judge(models, None)} == {"no verdict"}
    latent = [{"name": "celeba256", "results": models[0]["results"]}]
    verdicts = {(t["family"], t["peer"]): (t["found"], t["verdict"]) for t in targets.judge(latent, "avx2") if t["found"]}
    assert verdicts["avx2", "openvino f32"] == (0.8, "miss")
    assert verdicts["amx", "openvino bf16"] == (2.6, "no verdict")
    named = {(t.model, t.batch): t.goal for t in targets.TARGETS if t.peer is None and t.family == targets.ANY}
    assert named == {("avatars", 1): 4.0, ("cifar10", 1): 2.0, ("cifar10", 16): 2.0}
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
    stages = {"before": 2.0, "rows": 1.0, "after": 1.0, "noise": 0.5, "update": 0.2, "post": 0.1}
    record.add(SimpleNamespace(x=None, total_ms=26.0, calls_ms=[10.0, 10.0], stages_ms=stages))  # type: ignore[arg-type]
    rest = report.rest_of(record, step_ms=10.0)
    assert rest == {"percent_of_step": 10.0, "update_percent": 1.0, "all_but_denoiser_percent": 30.0}


def test_a_bundle_of_another_checkpoint_is_built_again(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    needs = bundles.Needs(("onnxruntime",), ())
    assert not bundles.is_current(tmp_path / "none.bundle", tmp_path / "a.ckpt", needs)
    toy.build_bundle(tmp_path / "a.bundle")
    assert not bundles.is_current(tmp_path / "a.bundle", tmp_path / "a.ckpt", needs)


def test_a_bundle_without_a_wanted_precision_is_built_again(
    native_bundle: Callable[..., Path], golden_bundle: GoldenBundle
) -> None:
    path, checkpoint = native_bundle("form1"), golden_bundle("form1").parent / "form1.ckpt"
    backends = Bundle.open(path).manifest.backends
    assert bundles.is_current(path, checkpoint, bundles.Needs(backends, ("bf16",)))
    assert not bundles.is_current(path, checkpoint, bundles.Needs(backends, ("bf16", "int8")))


def built(monkeypatch: pytest.MonkeyPatch, folder: Path, contestants: Sequence[Contestant]) -> list[list[str]]:
    """The commands that building for these contestants runs."""
    commands: list[list[str]] = []
    monkeypatch.setattr(bundles, "_run", lambda command: commands.append(list(command)))
    monkeypatch.setattr(bundles, "available", lambda: dict.fromkeys(("onnxruntime", "openvino", "native"), (True, "")))
    monkeypatch.setattr(bundles, "is_current", lambda *_: False)
    monkeypatch.setattr(bundles, "task_from", lambda *arguments: arguments)
    bundles.task_of("avatars", folder, 10, 1, contestants)
    return commands


def test_nothing_is_calibrated_for_contestants_that_were_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = built(monkeypatch, tmp_path, run.wanted(()))
    assert [command.count("int8") for command in every] == [1, 1]
    assert "--int8-budget" in every[1]
    (one,) = built(monkeypatch, tmp_path, run.wanted(("native int8", "native int8, all layers")))
    assert one[-7:] == ["--backends", "onnxruntime", "openvino", "native", "--precision", "f32", "bf16"]
    first, second = built(monkeypatch, tmp_path, run.wanted(("native int8",)))
    assert "int8" not in first
    assert "int8" in second
    (plain,) = built(monkeypatch, tmp_path, [ORT])
    assert plain[-4:] == ["--backends", "onnxruntime", "--precision", "f32"]


def test_a_plain_export_is_made_for_those_who_run_it(golden_bundle: GoldenBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked = golden_task(golden_bundle, "form1"), []
    monkeypatch.setattr(bundles, "_plain", lambda *_: asked.append(1) or Path("plain.onnx"))
    rest = (task.bundle, task.checkpoint, 3, 1, Path("."))
    assert bundles.task_from(*rest, [TORCH, ORT]).plain is None
    assert asked == []
    assert bundles.task_from(*rest, run.wanted(())).plain == Path("plain.onnx")
    assert bundles.task_from(*rest, [TORCH]).options == {"heads": task.options["heads"], "image_size": 16}


def test_milliseconds_on_the_plot_have_three_digits_or_all_before_the_point() -> None:
    assert [plots.digits(value) for value in (0.8752, 34.89, 526.38, 1056.2617)] == ["0.875", "34.9", "526", "1056"]
