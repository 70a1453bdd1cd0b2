"""The benchmarks of quality and what all share: measured as stated, refused where it would mean nothing, kept to schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.latency.plots import draw_latency
from benchmarks.machine import describe, machine_facts, write_json
from benchmarks.quality import cases, faces, plots, precisions, run, study
from benchmarks.quality.cases import Case
from engine import __version__
from engine.errors import ArgumentError
from engine.solver.table import Schedule, build_step_table
from export.fitting.frechet import moments
from tests import toy

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
SCHEMAS = Path(__file__).parents[2] / "benchmarks" / "schema"


def check_schema(name: str, result: Any) -> None:
    jsonschema.validate(result, json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


# --- The settings -----------------------------------------------------------------------------------------------------


def test_every_case_exists_and_has_its_own_key() -> None:
    wanted, linear = cases.full(), Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)
    assert len({case.key for case in wanted}) == len(wanted)
    for case in wanted:
        if case.steps:
            options = {key: value for key, value in case.setting().items() if key != "guidance"}
            table = build_step_table(linear, **options)
            assert len(table) == case.steps, case.key
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
    keep_busy(monkeypatch, precisions)
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
    assert result["machine"]["load_average"] == 0.25  # of before the run
    assert "WARNING" not in done.output


def keep_busy(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """A load average of 0.25 until `module` opens its first sampler, and of 9 from then on."""
    loads = [0.25]
    monkeypatch.setattr("os.getloadavg", lambda: (loads[-1], 0.0, 0.0))
    original = module.Sampler

    def opened(*arguments: Any) -> Any:
        loads.append(9.0)
        return original(*arguments)

    monkeypatch.setattr(module, "Sampler", opened)


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

    def measure(*options: str, samples: int = 5) -> tuple[dict[str, Any], str]:
        given = {"--bundle": "a.bundle", "--baseline": "b.bundle", "--heldout": "heldout.npz", "--out": "q.json"}
        given |= {"--plot": "q.png", "--picture": "s.png"}
        paths = [word for key, name in given.items() for word in (key, str(tmp_path / name))]
        more = ["--quick", "--samples", str(samples), "--threads", "1", *options]
        done = CliRunner().invoke(run.main, [*paths, *more])
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / "q.json").read_text()), done.output

    return measure


def test_quality_writes_what_its_schema_promises(
    measured: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_busy(monkeypatch, run)
    result, output = measured()
    assert result["machine"]["load_average"] == 0.25  # of before the run
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
    done = CliRunner().invoke(run.main, [w for key, name in given.items() for w in (key, str(tmp_path / name))])
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


def test_faces_are_rendered_where_no_file_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("python_avatars", reason="the package python-avatars is not installed")
    monkeypatch.setattr(faces, "RENDERED", 4)
    path = faces.held_out(tmp_path / "none.npz", tmp_path)
    assert path == tmp_path / "heldout.npz"
    heldout, train = faces.load_faces(path), faces.load_faces(tmp_path / "train.npz")
    assert heldout.shape == train.shape == (4, 32, 32, 3)
    assert not np.array_equal(heldout, train)
    assert faces.held_out(path, tmp_path / "elsewhere") == path


# --- What both share --------------------------------------------------------------------------------------------------


def test_machine_facts_are_plain_and_told_in_words() -> None:
    facts = machine_facts()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["versions"]["python"]
    assert facts["versions"]["diffusevae-engine"] == __version__  # what runs, not what is installed
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
    draw_latency(times, tmp_path / "l.png")
    for name in ("q.png", "s.png", "l.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
