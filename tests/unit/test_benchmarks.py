"""The benchmarks of quality and what all share: measured as stated, refused where it would mean nothing, kept to schemas."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.latency.plots import draw_latency
from benchmarks.machine import describe, machine_facts, write_json
from benchmarks.quality import cases, editing, faces, judge, plots, precisions, run, study
from benchmarks.quality.cases import Case
from benchmarks.quality.peers import PEERS
from engine import __version__
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from engine.errors import ArgumentError
from engine.solver.table import Schedule, build_step_table
from export.attributes import Attribute
from export.fitting.fit import CALLS
from export.fitting.frechet import frechet_distance, moments
from export.fitting.neighbours import precision_recall
from export.fitting.objective import colour_means
from tests import toy

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
SCHEMAS = Path(__file__).parents[2] / "benchmarks" / "schema"
DOCS = Path(__file__).parents[2] / "docs"


def check_schema(name: str, result: Any) -> None:
    jsonschema.validate(result, json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))


# --- The settings -----------------------------------------------------------------------------------------------------


def test_every_case_exists_and_has_its_own_key() -> None:
    wanted, linear = cases.full(), Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)
    assert len({case.key for case in wanted}) == len(wanted)
    for case in wanted:
        if case.curve != cases.VAE and not case.fitted:
            options = {key: value for key, value in case.options.items() if key != "setting"}
            assert len(build_step_table(linear, **options)) == case.steps, case.key
        if case.curve != cases.VAE:
            assert case.options["setting"] == ("fitted" if case.fitted else "plain"), case.key
    for curve in cases.CURVES:
        assert {case.steps for case in wanted if case == cases.plain(curve, case.steps)} == set(cases.STEPS)
        assert {case.steps for case in wanted if case == cases.fitted(curve, case.steps)} == set(CALLS)
    peers = {(case.peer, case.curve, case.steps) for case in wanted if case.peer}
    assert peers == set(product([peer.name for peer in PEERS], (cases.NOISE, cases.RECON), (3, 5, 10)))
    assert {case.key for case in cases.quick()} <= {case.key for case in wanted}


# --- quality.py -------------------------------------------------------------------------------------------------------


class Extractor:
    """Four cheap numbers of an image in the place of a network's features."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1).astype(np.float32)
        return np.stack([flat.mean(1), flat.std(1), flat[:, 0], flat[:, 1]], axis=1)


def test_precisions_are_compared_on_the_same_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "open_extractor", lambda *_: Extractor())
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
    monkeypatch.setattr(judge, "open_extractor", lambda *_: Extractor())
    monkeypatch.setattr(study, "find_spec", lambda name: None)  # tests/export/test_peers.py imports diffusers
    for draw in ("draw_quality", "draw_rows"):
        monkeypatch.setattr(plots, draw, lambda result, path: Path(path).touch())
    toy.build_bundle(tmp_path / "a.bundle", backends=("onnxruntime",))
    toy.build_bundle(tmp_path / "b.bundle", formulation=None, backends=("onnxruntime",))
    shutil.copytree(tmp_path / "a.bundle", tmp_path / "n.bundle")
    for name, start in (("a", 400), ("n", None)):
        settings = [as_defaults({"timesteps": [400, 150, 25], "t_start": start, "eta": 1.0, "noise_scale": 0.84})]
        write_fitted(tmp_path / f"{name}.bundle", settings, {})
    faces = np.random.default_rng(3).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "heldout.npz", images=faces)
    np.savez(tmp_path / "train.npz", images=faces[::-1])

    def measure(*options: str, samples: int = 8) -> tuple[dict[str, Any], str]:
        given = {"--bundle": "a.bundle", "--baseline": "b.bundle", "--heldout": "heldout.npz", "--out": "q.json"}
        given |= {"--noise-bundle": "n.bundle", "--plot": "q.png", "--picture": "s.png"}
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
    rows = {row["key"]: row for row in result["settings"]}
    left_out = [key for keys in result["left_out"].values() for key in keys]
    assert sorted([*rows, *left_out]) == sorted(case.key for case in cases.quick())
    assert set(left_out) == {
        case.key
        for case in cases.quick()
        if case.peer or (case.fitted and (case.curve == cases.BASELINE or case.steps == 5))
    }
    assert all(row["samples"] == 8 and row["ms_per_image"] > 0 for row in rows.values())
    starts = [rows[cases.fitted(curve, 3).key]["setting"]["t_start"] for curve in (cases.RECON, cases.NOISE)]
    assert starts == [400, None]
    assert rows[cases.plain(cases.RECON, 3).key]["setting"]["noise_scale"] == 1.0
    assert result["floor"]["samples"] == 8
    assert "found no fitted setting of 5 calls; fit some with" in output
    assert "left out (2): found no diffusers, expected it; install it with" in output
    assert (tmp_path / "q.png").exists()
    assert (tmp_path / "s.png").exists()


def test_every_column_is_what_its_name_says() -> None:
    rng = np.random.default_rng(1)
    real, images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), rng.integers(0, 200, (20, 8, 8, 3), dtype=np.uint8)
    features = Extractor()
    second = lambda images: features(images)[:, :2]  # noqa: E731
    found = judge.Judge(real, 20, [features, second], lambda _: None).scores(images, lambda _: None)
    near = precision_recall(features(real[:20]), features(images))
    assert (found["precision"], found["recall"]) == pytest.approx(near, abs=1e-4)
    for name, of in (("fd", features), ("fd_second", second), ("colour", colour_means)):
        assert found[name] == pytest.approx(frechet_distance(moments(of(real)), moments(of(images))), abs=1e-3)


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
    _, output = measured("--resume", samples=7)
    assert len(asked) == len(first["settings"])
    assert "starting over" in output


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        ({"--bundle": "b.bundle"}, "expected a DiffuseVAE"),
        ({"--baseline": "a.bundle"}, "expected an unconditional one"),
        ({"--bundle": "n.bundle"}, "give this one as --noise-bundle"),
        ({"--noise-bundle": "a.bundle"}, "found settings fitted from the reconstruction"),
        ({"--noise-bundle": "b.bundle"}, "expected a DiffuseVAE"),
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
    rows = [
        {
            "key": case.key, "curve": case.curve, "kind": case.kind, "network_calls": case.steps, "fd": 50.0 - index,
            "ms_per_image": 2.0 + 3 * case.steps,
        }
        for index, case in enumerate(cases.quick())
    ]  # fmt: skip
    result = {
        "settings": rows, "floor": {"fd": 3.0}, "metric": {"fd": "FD"}, "machine": {"processor": "p"},
        "inputs": {"samples": 5, "heldout": {"images": 40}}, "engine": {"threads": 1, "backend": "b", "precision": "f32"},
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


# --- editing.py -------------------------------------------------------------------------------------------------------


def test_the_edits_that_the_guide_speaks_of_are_those_measured() -> None:
    result = json.loads((DOCS / "editing.json").read_text(encoding="utf-8"))
    check_schema("editing", result)
    guide = (DOCS / "editing.md").read_text(encoding="utf-8")
    reached = [row for row in result["edits"] if editing.reaches(row)]
    assert f"{len(reached)} of the {len(result['edits'])} edits reach the goal" in " ".join(guide.split())


def test_the_targets_of_directions() -> None:
    table = [
        Attribute("glasses", ("none", "thick", "dark"), np.zeros(1, int)), Attribute("hat", ("no", "yes"), np.zeros(1, int)),
    ]  # fmt: skip
    found = editing.targets(table, ("glasses", "glasses=dark", "hat", "axis 1"))
    assert [(t.label, t.sign, t.wanted) for t in found] == [
        ("glasses=dark", 1, (2,)), ("+ glasses", 1, (1, 2)), ("- glasses", -1, (0,)), ("+ hat", 1, (1,)),
        ("- hat", -1, (0,)),
    ]  # fmt: skip


@pytest.mark.parametrize("guide", ["latent-diffusion", "guided-diffusion"])
def test_the_costs_of_building_in_the_guide_are_those_of_the_result(guide: str) -> None:
    from benchmarks.building.run import table

    result = json.loads((DOCS / f"{guide}.json").read_text(encoding="utf-8"))
    check_schema("building", result)
    assert table(result) in (DOCS / f"{guide}.md").read_text(encoding="utf-8")
