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
from engine.bundle.starts import GREY_LEVEL, MEASURES, StartRow, Starts, looks
from engine.cli.main import cli
from engine.damage import noise_of
from tests import toy
from tests.samplers import ANY_BACKEND

CLEAN = {"noise": 0.001, "quiet": 0.001, "peak": 0.001, "residual": 0.2, "part": 0.2}
HURT = {"noise": 0.3, "quiet": 0.1, "peak": 1.0, "residual": 0.3, "part": 0.3}
STARTS = [500, 30]
ROWS = [
    {"mean": looks(np.array([[*measures.values()]]))[0].tolist(), "spread": [0.5] * MEASURES, "psnr": psnr}
    for measures, psnr in ((CLEAN, [20.0, 40.0]), (HURT, [25.0, 15.0]))
]
SMOOTH = np.full((2, 8, 8, 3), 90, np.uint8)
NOISY = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def make(path: Path, *, backends: tuple[str, ...] = ("onnxruntime", "openvino")) -> Path:
    toy.build_bundle(path, backends=backends)
    write_starts(path, STARTS, ROWS, {"date": "2026-01-02T03:04:05+00:00"})
    return path


def spoil(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the object `refine` of a manifest in place."""
    raw = json.loads((path / MANIFEST_FILE).read_bytes())
    change(raw["refine"])
    (path / MANIFEST_FILE).write_text(json.dumps(raw), encoding="utf-8")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("starts") / "a.bundle")


def test_auto_is_the_start_that_promises_most(path: Path) -> None:
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as sampler:
        for images, start in ((SMOOTH, 30), (NOISY, 500)):
            found = sampler.refine(images, t_start="auto", seed=1)
            assert found.setting.t_start == start
            np.testing.assert_array_equal(found.images, sampler.refine(images, t_start=start, seed=1).images)
        assert sampler.refine(SMOOTH, t_start="auto", steps=40, seed=1).setting.t_start == 39  # room for its steps
        for images, start in ((SMOOTH, 1), (NOISY, 501)):  # the nearest of a leading grid, unless it is named
            found = sampler.refine(images, t_start="auto", spacing="leading", steps=10, seed=1)
            assert found.setting.t_start == start
        with pytest.raises(ArgumentError, match="pass t_start=501, the nearest"):
            sampler.refine(NOISY, t_start=500, spacing="leading", steps=10)
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
    np.testing.assert_allclose(noise_of(slope + noise)[0], 0.1, rtol=0.1)
    assert noise_of(slope)[0][0] < 1e-6
    assert [one[0] for one in noise_of(noise[:, :, :2])] == [0.0, 0.0, 0.0]


def test_the_command_line(path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "noisy.npy", NOISY)

    def run(start: str) -> Any:
        given = ["refine", path, tmp_path / "noisy.npy", "--t-start", start, "--json", "--out", tmp_path / "a.npy"]
        return CliRunner().invoke(cli, list(map(str, given)))

    assert json.loads(run("auto").stdout)["setting"]["t_start"] == 500
    assert "'auot' is not a valid integer" in run("auot").output
    shown = CliRunner().invoke(cli, ["info", str(path)]).output
    assert "t_start auto is one of 30, 500, of 2026-01-02" in " ".join(shown.split())


def test_what_tells_damages_apart() -> None:
    half = np.full((1, 3, 32, 32), 0.25, np.float32)
    half[..., 16:] = 0.75
    impulse = half.copy()
    impulse[..., 10, 5] = 1
    grain = half + np.float32(0.02) * np.random.default_rng(1).standard_normal(half.shape).astype(np.float32)
    (_, quiet, peak), (_, _, steep), (_, disturbed, _) = map(noise_of, (half, impulse, grain))
    assert (quiet[0], peak[0]) == (0, 0)  # an edge along an axis
    assert steep[0] > 0.5
    assert disturbed[0] > 0.001


def test_a_damage_mistaken_for_another_costs_little() -> None:
    def table(**damages: tuple[float, list[float]]) -> Starts:
        rows = tuple(StartRow((mean,) * MEASURES, (1.0,) * MEASURES, tuple(psnr)) for mean, psnr in damages.values())
        return Starts(of="", t_starts=(900, 100, 4), damages=rows, record={})

    between = np.full((1, MEASURES), 1.0 - GREY_LEVEL)  # a logarithm of 0
    clean, noisy = [10.0, 33.0, 42.0], [30.0, 29.0, 10.0]
    assert table(a=(-1, clean), b=(1, noisy)).choose(between) == 100  # the best of neither, and good for both
    assert table(a=(-2, clean), b=(1, noisy)).choose(between) == 900
    assert table(a=(-1, clean), b=(2, noisy)).choose(np.repeat(between, 9, axis=0)) == 4


# What is wrong with the object `refine` after a change, also for C++ (tests/cpp).
REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda r: r.update(of="0" * 64), r"refine\.of: found '0+.*expected [0-9a-f]{64}, the SHA-256 of the step's graph"),
    (lambda r: r.update(more=1), r"refine\.more: found an unknown field"),
    (lambda r: r.update(damages=[]), r"refine\.damages: found \[\] \(list\), expected a list of 1\.\.1024 damages"),
    (lambda r: r.update(damages=1025 * r["damages"][:1]), r"refine\.damages: found .*expected a list of 1\.\.1024 damages"),
    (lambda r: r["damages"][1].update(psnr=[1]), r"refine\.damages\[1\]\.psnr: found \[1\].*list of 2 numbers in 0\.\.100"),
    (lambda r: r["damages"][1].update(spread=[0] * 5), r"damages\[1\]\.spread: found .*a list of 5 numbers in 0\.001\.\.10"),
    (lambda r: r["damages"][1].update(mean=["1"] * 5), r"damages\[1\]\.mean: found .*a list of 5 numbers in -10\.\.10"),
    (lambda r: r["damages"][1].pop("mean"), r"refine\.damages\[1\]\.mean: missing"),
    (lambda r: r.update(t_starts=[1000, 4]), r"refine\.t_starts: found \[1000, 4\] .*0\.\.999"),
    (lambda r: r.update(t_starts=[4, 500]), r"refine\.t_starts: found \[4, 500\] .*falling"),
    (lambda r: r.update(record=None), r"refine\.record: found null"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_a_table_that_means_nothing_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    other = make(tmp_path / "other.bundle")
    spoil(other, change)
    with pytest.raises(BundleError, match=words):
        Bundle.open(other)
