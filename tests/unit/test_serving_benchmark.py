"""The serving benchmark without a server: every image compared, every error counted, the right ratios stated."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.machine import BenchmarkError, machine_facts
from benchmarks.serving import load, report, run
from benchmarks.serving.run import Schedule, Tally, Way
from engine.bundle.reader import Bundle
from engine.errors import EngineError
from engine.triton.serving import Serving, settle
from engine.triton.statistics import STAGES, Counters
from tests import toy

jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
SCHEMA = Path(__file__).parents[2] / "benchmarks" / "schema" / "serving.schema.json"
IMAGES = {seed: np.full((2, 2, 3), seed, np.uint8) for seed in range(10)}


class Refusal(Exception):
    """What the library raises."""


class Library:
    """Stands where tritonclient.grpc stands: answers every seed with an image of that value."""

    InferenceServerException = Refusal

    def __init__(self, wrong: int | None = None, refused: int | None = None) -> None:
        self.wrong, self.refused = wrong, refused
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.open = self.most = 0
        self._lock = threading.Lock()

    def InferenceServerClient(self, address: str, channel_args: Any) -> Any:
        self.open += 1
        self.most = max(self.most, self.open)
        return SimpleNamespace(is_server_live=lambda: True, infer=self.infer, close=self.close)

    def close(self) -> None:
        self.open -= 1

    def InferInput(self, name: str, shape: list[int], kind: str) -> Any:
        tensor = SimpleNamespace(name=name, kind=kind)
        tensor.set_data_from_numpy = lambda values: setattr(tensor, "values", values)
        return tensor

    def InferRequestedOutput(self, name: str) -> str:
        return name

    def infer(self, model: str, tensors: list[Any], outputs: list[str], client_timeout: float) -> Any:
        time.sleep(0.001)
        given = {tensor.name: int(tensor.values[0, 0]) for tensor in tensors}
        with self._lock:
            self.asked.append((model, given))
        if given["seed"] == self.refused:
            raise Refusal("no")
        value = given["seed"] + (7 if given["seed"] == self.wrong else 0)
        return SimpleNamespace(as_numpy=lambda name: np.full((1, 2, 2, 3), value, np.uint8))


def target(tolerance: int = 0, steps: int | None = None) -> load.Target:
    return load.Target("127.0.0.1:1", "faces", IMAGES, steps, tolerance)


def use(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Library:
    library = Library(**options)
    monkeypatch.setattr(load, "client_library", lambda: library)
    return library


class TestLoad:
    def test_clients_ask_until_the_time_is_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = use(monkeypatch)
        outcome = load.drive(target(steps=3), clients=4, seconds=0.2)
        assert len(outcome.milliseconds) == len(library.asked) > 20
        assert outcome.errors == []
        assert 0.2 <= outcome.seconds < 2
        assert min(outcome.milliseconds) >= 1
        assert (library.most, library.open) == (4, 0)
        assert {model for model, _ in library.asked} == {"faces"}
        assert {given["steps"] for _, given in library.asked} == {3}
        assert {given["seed"] for _, given in library.asked} == set(IMAGES)

    def test_a_wrong_image_and_a_refusal_are_errors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use(monkeypatch, wrong=3, refused=4)
        outcome = load.drive(target(), clients=2, seconds=0.2)
        assert set(outcome.errors) == {"the image of seed 3 differs by 7 of 255", "no"}
        assert outcome.milliseconds
        assert set(load.drive(target(tolerance=7), 2, 0.1).errors) == {"no"}

    def test_wrong_images_are_refused_before_anything_is_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = use(monkeypatch)
        load.check(target())
        assert sorted(given["seed"] for _, given in library.asked) == list(IMAGES)
        use(monkeypatch, wrong=3)
        with pytest.raises(BenchmarkError, match=r"faces: found that 1 of 10 answers .* seed 3 differs by 7 of 255"):
            load.check(target())


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> list[Way]:
    bundle = Bundle.open(toy.build_bundle(tmp_path_factory.mktemp("serving") / "toy.bundle", backends=("onnxruntime",)))
    served = [settle(bundle, Serving(name, most)) for name, most in (("toy_batched", 8), ("toy_single", 1))]
    return [Way(each, "f32", each.max_batch > 1) for each in served]


def tally(milliseconds: float, requests: int, executions: int, errors: int = 0) -> Tally:
    outcome = load.Outcome([milliseconds] * requests, ["no"] * errors, seconds=2.0)
    seconds = dict.fromkeys(STAGES, 0.001 * requests)
    return Tally(outcome, [Counters(requests, requests, executions, seconds)])


def result_of(ways: list[Way], errors: int = 0) -> dict[str, Any]:
    tallies = {
        ("toy_batched", 1): tally(4.0, 40, 40), ("toy_single", 1): tally(2.0, 80, 80),
        ("toy_batched", 16): tally(20.0, 300, 50), ("toy_single", 16): tally(80.0, 100, 100, errors),
    }  # fmt: skip
    return {
        "format": "diffusevae-serving",
        "format_version": 1,
        "date": "2026-01-01T00:00:00+00:00",
        "machine": machine_facts(),
        "server": {"triton": "2.51.0", "tritonclient": "2.73.0", "protocol": "gRPC, loopback"},
        "bundle": {"name": "toy", "source_sha256": "0" * 64},
        "setting": {"steps": 5, "method": "ddim", "t_start": 300, "eta": 1.0},
        "batching": {"max_batch": 8, "delay_us": 2000},
        "protocol": {"rounds": 1, "seconds_a_turn": 2.0, "samples_a_request": 1},
        "results": report.rows(ways, tallies),
    }


class TestReport:
    def test_rows_state_rates_ratios_and_batches(self, ways: list[Way]) -> None:
        result = result_of(ways)
        jsonschema.validate(result, json.loads(SCHEMA.read_text(encoding="utf-8")))
        rows = {(row["model"], row["clients"]): row for row in result["results"]}
        busy = rows["toy_batched", 16]
        assert (busy["images_per_second"], busy["against_single"], busy["mean_batch"]) == (150.0, 3.0, 6.0)
        assert (rows["toy_batched", 1]["against_single"], rows["toy_single", 16]["against_single"]) == (0.5, 1.0)
        assert busy["latency_ms"] == {"mean": 20.0, "p50": 20.0, "p90": 20.0, "p99": 20.0, "n": 300}
        assert busy["server_ms"] == dict.fromkeys(STAGES, 1.0)

    def test_the_table_names_everything(self, ways: list[Way]) -> None:
        text = report.table(result_of(ways, errors=2))
        assert "toy_batched" in text
        assert "3.00x" in text
        assert "delay 2 ms; Triton 2.51.0" in text
        assert text.splitlines()[-2].split()[-2:] == ["102", "2"]

    def test_the_plot(self, ways: list[Way], tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="the package matplotlib is not installed")
        report.draw(result_of(ways), tmp_path / "serving.png")
        with Image.open(tmp_path / "serving.png") as picture:
            assert picture.size[0] > 1000
            assert np.asarray(picture).std() > 20


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, result: Any) -> Any:
        def measure(facts: Any, bundle: Path, backends: Any, chosen: Serving, schedule: Schedule, *_: Any) -> Any:
            assert (chosen.max_batch, schedule.clients) == (4, (1, 8))
            if isinstance(result, EngineError):
                raise result
            return result

        use(monkeypatch)
        monkeypatch.setattr(run, "measure", measure)
        arguments = ["--max-batch", "4", "--clients", "8", "--clients", "1", "--out", str(tmp_path / "serving.json")]
        return CliRunner().invoke(run.main, [*arguments, "--plot", str(tmp_path / "serving.png")])

    def test_no_error_is_exit_code_0(self, ways: list[Way], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        done = self.run(monkeypatch, tmp_path, result_of(ways))
        assert done.exit_code == 0, done.output
        assert {path.name for path in tmp_path.iterdir()} == {"serving.json", "serving.png"}

    def test_any_error_is_not(self, ways: list[Way], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        done = self.run(monkeypatch, tmp_path, result_of(ways, errors=1))
        assert done.exit_code == 1
        assert "found 1 requests that failed, expected none" in done.output
        assert json.loads((tmp_path / "serving.json").read_text())["results"][-1]["first_errors"] == ["no"]

    def test_a_missing_server_is_one_line(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        done = self.run(monkeypatch, tmp_path, BenchmarkError("found no server, expected one; install it"))
        assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
        assert done.output.endswith("Error: found no server, expected one; install it\n")
