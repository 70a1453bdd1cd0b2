"""The table of starts in a bundle: what is refused, and what `refine(t_start="auto")` makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import ArgumentError, BundleError, Sampler
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_starts
from engine.cli.main import cli
from engine.damage import noise_of
from tests import toy
from tests.samplers import ANY_BACKEND

ROWS = [{"noise": 0.0, "residual": 0.2, "t_start": 30}, {"noise": 0.3, "residual": 0.3, "t_start": 500}]
SMOOTH = np.full((2, 8, 8, 3), 90, np.uint8)
NOISY = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def make(path: Path, *, backends: tuple[str, ...] = ("onnxruntime", "openvino")) -> Path:
    toy.build_bundle(path, backends=backends)
    write_starts(path, ROWS, {"date": "2026-01-02T03:04:05+00:00"})
    return path


def spoil(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the object `refine` of a manifest in place."""
    raw = json.loads((path / MANIFEST_FILE).read_bytes())
    change(raw["refine"])
    (path / MANIFEST_FILE).write_text(json.dumps(raw), encoding="utf-8")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("starts") / "a.bundle")


def test_auto_is_the_start_of_the_nearest_row(path: Path) -> None:
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as sampler:
        for images, start in ((SMOOTH, 30), (NOISY, 500)):
            found = sampler.refine(images, t_start="auto", seed=1)
            assert found.setting.t_start == start
            np.testing.assert_array_equal(found.images, sampler.refine(images, t_start=start, seed=1).images)
        assert sampler.refine(SMOOTH, t_start="auto", steps=40, seed=1).setting.t_start == 39  # room for its steps
        for verb, words in (
            (lambda: sampler.refine(SMOOTH, t_start="automatic"), r"t_start is 'automatic'; expected a timestep, 'auto'"),
            (lambda: sampler.reconstruct(SMOOTH, t_start="auto"), r"t_start is 'auto', a str; expected an integer"),
            (lambda: sampler.refine(SMOOTH[:0], t_start="auto"), r"images has shape \[0, 8, 8, 3\]"),
            (lambda: sampler.refine(SMOOTH, t_start="auto", steps="5"), r"steps is '5', a str; expected an integer"),
        ):
            with pytest.raises(ArgumentError, match=words):
                verb()


def test_a_bundle_without_a_table_names_the_command(tmp_path: Path) -> None:
    with (
        Sampler(toy.build_bundle(tmp_path / "a.bundle"), ANY_BACKEND, "f32", threads=1) as sampler,
        pytest.raises(ArgumentError, match=r"no table of starts.*Fit the table with: .*fit.refine.*a\.bundle --images FILE"),
    ):
        sampler.refine(SMOOTH, t_start="auto")


def test_noise_is_what_white_noise_is_and_nothing_of_a_slope() -> None:
    slope = np.linspace(0, 1, 32, dtype=np.float32) * np.ones((1, 3, 32, 1), np.float32)
    noise = 0.1 * np.random.default_rng(1).standard_normal((4, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(noise_of(slope + noise), 0.1, rtol=0.1)
    assert noise_of(slope)[0] < 1e-6
    assert noise_of(noise[:, :, :2])[0] == 0.0


def test_the_command_line(path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "noisy.npy", NOISY)

    def run(start: str) -> Any:
        given = ["refine", path, tmp_path / "noisy.npy", "--t-start", start, "--json", "--out", tmp_path / "a.npy"]
        return CliRunner().invoke(cli, list(map(str, given)))

    assert json.loads(run("auto").stdout)["setting"]["t_start"] == 500
    assert "'auot' is not a valid integer" in run("auot").output
    shown = CliRunner().invoke(cli, ["info", str(path)]).output
    assert "t_start auto is one of 30, 500, of 2026-01-02" in " ".join(shown.split())


# What is wrong with the object `refine` after a change, also for C++ (tests/cpp).
REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda r: r.update(of="0" * 64), r"refine\.of: found '0+.*expected [0-9a-f]{64}, the SHA-256 of the step's graph"),
    (lambda r: r.update(more=1), r"refine\.more: found an unknown field"),
    (lambda r: r.update(starts=[]), r"refine\.starts: found \[\] \(list\), expected a list of 1\.\.1024 rows"),
    (lambda r: r.update(starts=1025 * r["starts"][:1]), r"refine\.starts: found .*expected a list of 1\.\.1024 rows"),
    (lambda r: r["starts"][1].update(noise=-1), r"refine\.starts\[1\]\.noise: found -1 .*expected a number in 0\.\.10"),
    (lambda r: r["starts"][1].pop("residual"), r"refine\.starts\[1\]\.residual: missing"),
    (lambda r: r["starts"][0].update(t_start=1000), r"refine\.starts\[0\]\.t_start: found 1000 .*0\.\.999"),
    (lambda r: r.update(record=None), r"refine\.record: found null"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_a_table_that_means_nothing_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    other = make(tmp_path / "other.bundle")
    spoil(other, change)
    with pytest.raises(BundleError, match=words):
        Bundle.open(other)
