"""Do the benchmarks measure what they say, refuse what would mean nothing, and write what their schemas promise?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import bundles, cases, duel, latency, plots, precisions, quality, report, study, targets, work
from benchmarks.cases import Case
from benchmarks.contestants import EngineRunner, TorchRunner
from benchmarks.field import BY_NAME, CONTESTANTS, Contestant, Task, skip_reason
from benchmarks.frechet import Moments, frechet_distance, moments
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from benchmarks.plain import PlainRunner, export_plain
from engine.errors import ArgumentError
from engine.processor import Processor
from engine.steps import Schedule, build_step_table
from tests import golden_models, toy

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
SCHEMAS = Path(__file__).parents[2] / "benchmarks" / "schema"
GoldenBundle = Callable[[str], Path]
TORCH, ORT = BY_NAME["torch eager f32"], BY_NAME["onnxruntime f32"]


def check_schema(name: str, result: Any) -> None:
    jsonschema.validate(result, json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


# --- The distance -----------------------------------------------------------------------------------------------------


def gaussian(mean: list[float], covariance: Any) -> Moments:
    return Moments(np.array(mean, float), np.array(covariance, float), 100)


def test_distance_of_a_set_to_itself_is_zero_even_with_fewer_images_than_features() -> None:
    features = np.random.default_rng(0).standard_normal((20, 60))
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0.0, abs=1e-5)


def test_distance_of_gaussians_with_diagonal_covariances() -> None:
    a, b = gaussian([0, 1, 2], np.diag([1.0, 4.0, 9.0])), gaussian([1, 1, 0], np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)


def test_distance_of_gaussians_whose_covariances_do_not_commute() -> None:
    a, b = gaussian([0, 0], [[2.0, 1.0], [1.0, 3.0]]), gaussian([1, 2], [[5.0, -2.0], [-2.0, 1.5]])
    product = a.covariance @ b.covariance
    # In two dimensions tr sqrt(P) = sqrt(tr P + 2 sqrt(det P)).
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 5 + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_moments_are_those_of_numpy_in_float64() -> None:
    features = np.random.default_rng(1).standard_normal((50, 7)).astype(np.float32)
    fitted = moments(features)
    assert fitted.count == 50
    assert fitted.covariance.dtype == np.float64
    np.testing.assert_allclose(fitted.covariance, np.cov(features.astype(float).T), rtol=1e-10)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), "found the shape \\[1, 3\\], expected \\[N, D\\]"),
        (np.array([[0.0, np.nan], [1, 1]]), "found NaN or infinity"),
    ],
)
def test_features_without_a_distance_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        moments(features)


def test_features_of_two_extractors_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="found 2 and 1 numbers an image"):
        frechet_distance(gaussian([0, 0], np.eye(2)), gaussian([0], np.eye(1)))


def test_extractor_gives_the_same_features_in_any_batch_and_tells_images_apart() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the package efficientnet-lite-pytorch is not installed")
    extract = study.open_extractor(1)
    images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    features = extract(images)
    assert features.shape == (3, 1280)
    np.testing.assert_allclose(extract(images[1:2])[0], features[1], atol=1e-3)
    assert np.abs(features[0] - features[1]).max() > 0.1
    with pytest.raises(BenchmarkError, match="expected uint8"):
        extract(images.astype(np.float32))


# --- The settings -----------------------------------------------------------------------------------------------------


def test_every_case_exists_and_has_its_own_key() -> None:
    wanted = cases.full()
    assert len({case.key for case in wanted}) == len(wanted)
    for case in wanted:
        if case.steps:
            options = {key: value for key, value in case.setting().items() if key != "guidance"}
            table = build_step_table(Schedule(1e-4, 0.02, 1000), formulation=1, **options)
            assert table.steps == case.steps, case.key
    main = {(case.curve, case.steps) for case in wanted if case.plain}
    assert {(curve, steps) for curve in (cases.NOISE, cases.BASELINE) for steps in (3, 5, 10, 25, 50)} <= main
    assert {case.t_start for case in wanted if case.curve == cases.RECON} == {200, 300, 400, 500, 600}
    assert {case.key for case in cases.quick()} <= {case.key for case in wanted}


def test_recommended_is_the_best_within_five_network_calls_of_a_diffusevae() -> None:
    measured = [
        (Case(cases.NOISE, 50), 1.0),  # too slow
        (Case(cases.BASELINE, 5), 2.0),  # another model
        (Case(cases.RECON, 5, "linspace", 400, 0.5), 3.0),  # guidance makes it ten calls
        (Case(cases.RECON, 3, "trailing", 500, prior="standard"), 3.5),  # the recorded setting names no prior
        (Case(cases.RECON, 3, "linspace", 500), 4.0),
        (Case(cases.NOISE, 5), 5.0),
    ]
    rows: list[dict[str, Any]] = []
    for case, fd in measured:
        row = {"curve": case.curve, "network_calls": case.network_calls, "fd": fd, "setting": case.setting()}
        rows.append(row | {"prior": case.prior})
    best = cases.recommend(rows)
    assert best is not None
    expected = {"steps": 3, "method": "ddim", "spacing": "linspace", "t_start": 500}
    assert best["setting"] == expected | {"eta": 0.0, "temperature": 1.0, "guidance": 0.0}
    assert cases.recommend(rows[:3]) is None


# --- quality.py -------------------------------------------------------------------------------------------------------


class Extractor:
    """Four cheap numbers of an image in the place of a network's features."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1).astype(np.float32)
        return np.stack([flat.mean(1), flat.std(1), flat[:, 0], flat[:, 1]], axis=1)


def test_precisions_are_compared_on_the_same_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "open_extractor", lambda threads: Extractor())
    monkeypatch.setattr(plots, "draw_rows", lambda rows, path: path.write_text(" ".join(label for label, _ in rows)))
    toy.build_bundle(tmp_path / "a.bundle")
    np.savez(tmp_path / "h.npz", images=np.random.default_rng(3).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    given = {"--bundle": "a.bundle", "--heldout": "h.npz", "--out": "p.json", "--picture": "p.png"}
    words = [word for key, name in given.items() for word in (key, str(tmp_path / name))]
    done = CliRunner().invoke(precisions.main, [*words, "--samples", "5", "--threads", "1"])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "p.json").read_text())
    check_schema("precisions", result)
    assert [way["way"] for way in result["ways"]] == ["recorded setting", "10 steps from noise"]
    rows = result["ways"][0]["rows"]
    assert (rows[0]["backend"], rows[0]["precision"]) == precisions.REFERENCE
    assert rows[0]["mean_pixel_difference"] == rows[0]["fd_change_percent"] == 0.0
    assert len(rows) > 1
    assert "onnxruntime\nf32" in (tmp_path / "p.png").read_text()


def test_a_precision_beyond_its_bound_is_told_and_fails() -> None:
    rng = np.random.default_rng(5)
    reference = moments(Extractor()(rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)))
    images = rng.integers(0, 200, (20, 8, 8, 3), dtype=np.uint8)
    names = [("a", "f32"), ("b", "bf16"), ("c", "bf16")]
    rows = precisions.compare([images, images, images + 40], names, Extractor(), reference)
    assert [row["within"] for row in rows] == [True, True, False]
    assert rows[2]["mean_pixel_difference"] == 40.0


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """measured(*options): the result of quality.py --quick on toy bundles, and what it printed."""
    monkeypatch.setattr(study, "open_extractor", lambda threads: Extractor())
    for draw in ("draw_quality", "draw_rows"):
        monkeypatch.setattr(plots, draw, lambda result, path: Path(path).touch())
    toy.build_bundle(tmp_path / "a.bundle", backends=("onnxruntime",))
    toy.build_bundle(tmp_path / "b.bundle", formulation=None, backends=("onnxruntime",))
    faces = np.random.default_rng(3).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "heldout.npz", images=faces)
    np.savez(tmp_path / "train.npz", images=faces[::-1])

    def run(*options: str, samples: int = 5) -> tuple[dict[str, Any], str]:
        given = {"--bundle": "a.bundle", "--baseline": "b.bundle", "--heldout": "heldout.npz", "--out": "q.json"}
        given |= {"--plot": "q.png", "--picture": "s.png"}
        paths = [word for key, name in given.items() for word in (key, str(tmp_path / name))]
        more = ["--quick", "--samples", str(samples), "--threads", "1", *options]
        done = CliRunner().invoke(quality.main, [*paths, *more])
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "q.json").read_text()), done.output

    return run


def test_quality_writes_what_its_schema_promises(measured: Callable[..., Any], tmp_path: Path) -> None:
    result, output = measured()
    check_schema("quality", result)
    assert result["complete"]
    assert {row["key"] for row in result["settings"]} == {case.key for case in cases.quick()}
    assert all(row["samples"] == 5 and row["ms_per_image"] > 0 for row in result["settings"])
    assert [floor["counts"] for floor in result["floors"]] == [[20, 20], [5, 40]]
    assert result["recommended"]["steps"] in (3, 5)
    assert "<- best few-step setting" in output
    assert (tmp_path / "q.png").exists()
    assert (tmp_path / "s.png").exists()


def test_quality_resumes_only_over_the_same_inputs(
    measured: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = measured()
    cut = {**first, "complete": False, "settings": first["settings"][:-2]}
    (tmp_path / "q.json").write_text(json.dumps(cut))
    asked: list[str] = []
    original = study.Study.measure

    def watched(self: study.Study, case: Case, *rest: Any) -> dict[str, Any]:
        asked.append(case.key)
        return original(self, case, *rest)

    monkeypatch.setattr(study.Study, "measure", watched)
    resumed, _ = measured("--resume")
    assert asked == [row["key"] for row in first["settings"][-2:]]
    # Seeds make the images, so the distances of a repeated row are the same to the digit.
    assert [row["fd"] for row in resumed["settings"]] == [row["fd"] for row in first["settings"]]
    asked.clear()
    _, output = measured("--resume", samples=6)
    assert len(asked) == len(cases.quick())
    assert "starting over" in output


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        ({"--bundle": "b.bundle"}, "expected a DiffuseVAE"),
        ({"--baseline": "a.bundle"}, "expected an unconditional one"),
        ({"--train": "nowhere.npz"}, "expected an .npz with images"),
    ],
)
def test_quality_refuses_wrong_files_in_one_line(
    measured: Callable[..., Any], tmp_path: Path, swap: dict[str, str], message: str
) -> None:
    given = {"--bundle": "a.bundle", "--baseline": "b.bundle", "--heldout": "heldout.npz", "--out": "q.json"} | swap
    done = CliRunner().invoke(quality.main, [w for key, name in given.items() for w in (key, str(tmp_path / name))])
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_faces_are_rendered_where_no_file_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("python_avatars", reason="the package python-avatars is not installed")
    monkeypatch.setattr(quality, "RENDERED", 4)
    path = quality.held_out(tmp_path / "none.npz", tmp_path)
    assert path == tmp_path / "heldout.npz"
    heldout, train = quality.load_faces(path), quality.load_faces(tmp_path / "train.npz")
    assert heldout.shape == train.shape == (4, 32, 32, 3)
    assert not np.array_equal(heldout, train)
    assert quality.held_out(path, tmp_path / "elsewhere") == path


# --- latency.py -------------------------------------------------------------------------------------------------------


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
    schedule = latency.Schedule((2,), duel.Plan(rounds=2, repeats=1, seconds=1.0), tuple(skip))
    result = latency.measure([task], schedule, told.append, roof=False)
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
    text = latency.told(result)
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
        latency.measure_model(task, latency.Schedule((1,), duel.Plan(1, 1, 1.0), tuple(skip)), lambda _: None)


def test_a_batch_that_would_take_too_long_is_left_out_and_told(golden_bundle: GoldenBundle) -> None:
    skip = tuple(contestant.name for contestant in CONTESTANTS if contestant != ORT)
    schedule = latency.Schedule((1, 1000), duel.Plan(1, 1, 1.0), skip, longest=1e-3)
    model = latency.measure_model(golden_task(golden_bundle, "form1"), schedule, lambda _: None)
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


def test_targets_are_judged_only_where_tiles_are() -> None:
    def row(contestant: str, ms: float) -> dict[str, Any]:
        times = {"total_ms": {"p50": 10 * ms}, "step_ms": {"p50": ms}, "rest": {"percent_of_step": 2.0}}
        return {"contestant": contestant, "batch": 1, **times}

    times = {"native bf16": 5.0, "openvino bf16": 13.0, "torch eager f32": 40.0}
    models = [{"name": "cifar10-random", "results": [row(name, ms) for name, ms in times.items()]}]
    rows = [t for t in targets.judge(models, amx=True) if t["model"] == "cifar10"]
    judged = {(t["ours"], t["peer"], t["measure"]): t for t in rows if t["batch"] == 1}
    assert (judged["native bf16", "openvino bf16", "step_ms"]["found"], len(rows)) == (2.6, 14)
    assert judged["native bf16", "openvino bf16", "step_ms"]["verdict"] == "pass"
    assert judged["native bf16", "torch eager f32", "total_ms"]["verdict"] == "miss"  # 8 times, of 10
    assert judged["native bf16", None, "step_ms"]["verdict"] == "pass"
    assert judged["native int8", "openvino bf16", "step_ms"]["found"] is None
    assert {t["verdict"] for t in targets.judge(models, amx=False)} == {"no verdict"}
    assert "no verdicts" in targets.text(targets.judge(models, amx=False), amx=False)


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


# --- What both share --------------------------------------------------------------------------------------------------


def test_machine_facts_are_plain_and_told_in_words() -> None:
    facts = machine_facts()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["versions"]["python"]
    assert facts["processor"] in describe(facts)
    assert "WARNING: load average 3.5" in describe({**facts, "load_average": 3.5})
    assert "WARNING" not in describe({**facts, "load_average": 0.1})


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "r.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(target, {"a": float("nan")})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in target.parent.iterdir()] == ["r.json"]
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_json(target / "below.json", {})


def test_plots_are_drawn_from_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the package matplotlib is not installed")
    rows = []
    for index, case in enumerate(cases.quick()):
        setting = case.setting() if case.steps else None
        rows.append({"key": case.key, "curve": case.curve, "steps": case.steps, "plain": case.plain, "setting": setting})
        rows[-1]["prior"] = case.prior
        rows[-1] |= {"fd": 50.0 - index, "ms_per_image": 2.0 + 3 * case.steps, "network_calls": case.network_calls}
    result = {
        "settings": rows, "floors": [{"fd": 3.0}], "recommended_key": rows[-1]["key"], "metric": {"name": "FD"},
        "inputs": {"samples": 5, "heldout": {"images": 40}}, "machine": {"processor": "p"},
        "engine": {"threads": 1, "backend": "b", "precision": "f32"},
    }  # fmt: skip
    plots.draw_quality(result, tmp_path / "q.png")
    plots.draw_rows([("one", np.zeros((3, 8, 8, 3), np.uint8))], tmp_path / "s.png")
    timed = {"contestant": "x", "batch": 1, "total_ms": {"p50": 10.0, "p90": 11.0}, "step_ms": {"p50": 1.0}}
    model = {"name": "m", "results": [timed, {**timed, "batch": 4}], "contestants": [{"name": "x"}, {"name": "y"}]}
    short = {**model, "name": "n", "results": [timed]}
    times = {"models": [model, short], "steps": 10, "threads": 1, "machine": {"processor": "p"}}
    plots.draw_latency(times, tmp_path / "l.png")
    for name in ("q.png", "s.png", "l.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
