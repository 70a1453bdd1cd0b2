"""Fitted settings in a bundle: taken for their number of steps, unless something else is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engine import ArgumentError, BundleError, Sampler
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.fitted import as_defaults
from engine.bundle.reader import Bundle
from engine.bundle.rewriter import write_fitted
from engine.cli.main import cli
from tests import toy
from tests.samplers import ANY_BACKEND

THREE: dict[str, Any] = {
    "timesteps": [400, 150, 25], "t_start": 400, "eta": 1.0, "noise_scale": 0.84, "eps_scale": 1.01, "method": "ddim",
}  # fmt: skip
FIVE: dict[str, Any] = {"timesteps": [900, 700, 300, 100, 20], "t_start": None, "method": "dpmpp_2m"}


def make(path: Path, *settings: dict[str, Any], backends: Sequence[str] = ("onnxruntime", "openvino")) -> Path:
    toy.build_bundle(path, defaults={"steps": 5, "spacing": "trailing"}, backends=backends)
    write_fitted(path, [as_defaults(setting) for setting in settings], {"date": "2026-01-02T03:04:05+00:00"})
    return path


def spoil(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the object `fitted` of a manifest in place."""
    raw = json.loads((path / MANIFEST_FILE).read_bytes())
    change(raw["fitted"])
    (path / MANIFEST_FILE).write_text(json.dumps(raw), encoding="utf-8")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("fitted") / "fitted.bundle", THREE, FIVE)


@pytest.fixture(scope="module")
def sampler(path: Path) -> Iterator[Sampler]:
    with Sampler(path, ANY_BACKEND, "f32", threads=1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("asked", "means"),
    [
        ({"steps": 3}, THREE),
        ({}, FIVE),
        ({"setting": "fitted", "steps": 3}, THREE),
        ({"steps": np.int64(3), "temperature": 0.5}, {**THREE, "temperature": 0.5}),
        ({"steps": 3, "noise_scale": 0.5}, {**THREE, "noise_scale": 0.5}),
        ({"steps": 4}, {"setting": "plain", "steps": 4}),
        ({"setting": "plain"}, {"steps": 5, "spacing": "trailing"}),
        ({"setting": "plain", "steps": 3}, {"steps": 3, "method": "ddim"}),
        ({"steps": 3, "eta": 0.0, "spacing": "linspace"}, {"setting": "plain", "steps": 3, "spacing": "linspace"}),
        ({"timesteps": [9, 5, 1]}, {"setting": "plain", "timesteps": [9, 5, 1]}),
    ],
)
def test_which_setting_is_meant(sampler: Sampler, asked: dict[str, Any], means: dict[str, Any]) -> None:
    expected = sampler.sample(2, seed=1, **means)
    found = sampler.sample(2, seed=1, **asked)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.timesteps, expected.timesteps)


def test_a_fitted_setting_serves_every_verb(sampler: Sampler) -> None:
    images = sampler.sample(2, seed=3).images
    for run in (sampler.refine, sampler.reconstruct):
        np.testing.assert_array_equal(run(images, seed=1, steps=3).timesteps, THREE["timesteps"])
    assert sampler.interpolate(1, 2, 3, steps=3).setting.noise_scale == 0.84


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"setting": "fited"}, r"setting is 'fited'; expected one of fitted, plain\. Did you mean 'fitted'"),
        ({"setting": "fitted", "steps": 4}, r"has none of 4 steps; expected one of those it has: 3, 5\. Fit some"),
        ({"steps": 3.0}, r"steps is 3\.0, a float; expected an integer"),
        ({"setting": "fitted", "eta": 1.0}, r"eta is given, which a fitted setting says itself"),
    ],
)
def test_what_cannot_be_meant_is_refused(sampler: Sampler, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        sampler.sample(1, **asked)


def test_a_bundle_without_any_has_none(tmp_path: Path) -> None:
    with (
        Sampler(make(tmp_path / "none.bundle"), ANY_BACKEND, "f32", threads=1) as sampler,
        pytest.raises(ArgumentError, match="expected one of those it has: none yet"),
    ):
        sampler.sample(1, setting="fitted")


# What is wrong with the object `fitted` after a change, also for C++ (tests/cpp).
REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda f: f.update(of="0" * 64), r"fitted\.of: found '0+.*expected [0-9a-f]{64}, the SHA-256 of the step's graph"),
    (lambda f: f.pop("of"), r"fitted\.of: missing"),
    (lambda f: f.update(more=1), r"fitted\.more: found an unknown field"),
    (lambda f: f.update(settings=[]), r"fitted\.settings: found \[\] \(list\), expected a list of settings"),
    (lambda f: f["settings"][0].update(steps=4), r"fitted\.settings\[0\]\.timesteps: found .*expected a list of 4"),
    (lambda f: f["settings"][0].update(timesteps=None), r"fitted\.settings\[0\]\.timesteps: found null"),
    (lambda f: f["settings"][0].update(timesteps=[5, 5, 1]), r"fitted\.settings\[0\]\.timesteps: found \[5, 5, 1\]"),
    (lambda f: f["settings"].append(f["settings"][0]), r"fitted\.settings\[2\]\.steps: found 3 .*expected another"),
    (lambda f: f["settings"][1].update(method="dpm"), r"fitted\.settings\[1\]\.method: found 'dpm'"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_fitted_settings_that_mean_nothing_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    other = make(tmp_path / "other.bundle", THREE, FIVE)
    spoil(other, change)
    with pytest.raises(BundleError, match=words):
        Bundle.open(other)


def test_what_is_written_is_checked_first_and_leaves_the_bundle_whole(tmp_path: Path) -> None:
    path = make(tmp_path / "a.bundle", THREE)
    before = (path / MANIFEST_FILE).read_bytes()
    with pytest.raises(BundleError, match=r"fitted\.settings\[0\]\.eta"):
        write_fitted(path, [as_defaults({**THREE, "eta": 2.0})], {})
    assert (path / MANIFEST_FILE).read_bytes() == before
    write_fitted(path, [], {})
    assert json.loads((path / MANIFEST_FILE).read_bytes())["fitted"] is None
    assert sorted(entry.name for entry in path.iterdir() if entry.name.startswith(".")) == []


def test_the_command_line(path: Path, tmp_path: Path) -> None:
    def timesteps(*arguments: str) -> list[int]:
        command = ["sample", str(path), "--seed", "1", "--out", str(tmp_path / "a.npy"), "--json", *arguments]
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
        found: list[int] = json.loads(result.stdout)["timesteps"]
        return found

    assert timesteps("--steps", "3") == THREE["timesteps"]
    assert timesteps() == FIVE["timesteps"]
    assert timesteps("--setting", "plain") == [999, 799, 599, 399, 199]
    shown = CliRunner().invoke(cli, ["info", str(path)]).output
    assert "settings of 3, 5 steps, of 2026-01-02" in " ".join(shown.split())
