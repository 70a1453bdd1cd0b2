"""`diffusevae fit-setting` on a toy: what it finds holds, is written down, and is what `sample` then uses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from engine import Sampler
from engine.bundle.files import MANIFEST_FILE
from export.fit_setting import main
from export.fitting.objective import Conditions
from tests import toy
from tests.bulk_jobs import extractor
from tests.samplers import ANY_BACKEND
from tests.toy_family import IMAGE, STYLE, build_family

ROOT = Path(__file__).resolve().parents[2]
HERE = ["--backend", ANY_BACKEND, "--precision", "f32", "--threads", 1]
QUICK = ["--calls", 2, "--calls", 3, "--seeds", 16, "--proof", 16, "--minutes", 0.05]


def fit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in (*arguments, *HERE)])


def fitted(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / MANIFEST_FILE).read_bytes())["fitted"]
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """What the toy itself makes in many steps, for training images."""
    with Sampler(toy.build_bundle(tmp_path / "teacher.bundle"), ANY_BACKEND, "f32", threads=1) as sampler:
        np.savez(tmp_path / "train.npz", images=sampler.sample(48, seed=0, steps=20, t_start=500, eta=1.0).images)
    return tmp_path / "train.npz"


@pytest.mark.parametrize("start", ["image", "noise"])
def test_fitted_to_images(tmp_path: Path, images: Path, start: str) -> None:
    bundle, network = toy.build_bundle(tmp_path / "a.bundle"), tmp_path / "features.onnx"
    network.write_bytes(extractor())
    given = [bundle, "--images", images, "--network", network, "--start", start, *QUICK]
    result = fit(*given, "--plot", tmp_path / "front.png")
    assert result.exit_code == 0, result.output
    found = fitted(bundle)
    record = {fit["calls"]: fit for fit in found["record"]["fits"]}
    assert set(record) == {2, 3}
    assert found["record"]["objective"] == "FD (features.onnx)"
    with Sampler(bundle, ANY_BACKEND, "f32", threads=1) as sampler:
        for setting in found["settings"]:
            proof = record[setting["steps"]]
            assert proof["score"]["excess"] == 0
            assert proof["score"]["fd"] <= proof["plain"]["fd"]
            assert (setting["t_start"] is None) == (start == "noise")
            assert sampler.sample(1, seed=0, steps=setting["steps"]).timesteps.tolist() == setting["timesteps"]
    known = json.loads((tmp_path / "a.bundle.settings.json").read_bytes())["scores"]
    assert len(known) == sum(fit["evaluations"] for fit in record.values())
    assert "calls" in result.output
    with Image.open(tmp_path / "front.png") as plot:
        assert plot.width > plot.height > 500
    assert fit(*given, "--dry-run").exit_code == 0
    assert fitted(bundle) == found, "a dry run writes nothing"
    assert "scores of another bundle" in fit(*given, "--seeds", 17).output


def test_samples_take_the_rows_of_an_input_in_turn_at_the_guidance_that_is_fitted_for(tmp_path: Path) -> None:
    bundle, network, taken = build_family(tmp_path / "a.bundle"), tmp_path / "features.onnx", tmp_path / "label.npy"
    labels = np.array([3, 0, 7, 10, 5])
    np.save(taken, labels)
    with Sampler(bundle, ANY_BACKEND, "f32", threads=1) as sampler:
        rows = Conditions(sampler, {"label": labels, "style": np.zeros(STYLE)})
        np.testing.assert_array_equal(rows.of(8, 12)["label"], labels[[3, 4, 0, 1]])
        assert rows.of(8, 12)["style"].shape == (STYLE,), "one for all"
        images = sampler.sample(seed=range(40), label=np.arange(40) % 10, guidance=1.5).images
        np.savez(tmp_path / "train.npz", images=images)
    network.write_bytes(extractor(shape=["n", *IMAGE[1:], IMAGE[0]]))
    given = [bundle, "--images", tmp_path / "train.npz", "--network", network, "--guidance", 1.5, *QUICK]
    given += ["--input", f"label={taken}"]
    result = fit(*given)
    assert result.exit_code == 0, result.output
    assert {setting["guidance"] for setting in fitted(bundle)["settings"]} == {1.5}
    for changed in (labels[::-1], labels[:4]):
        np.save(taken, changed)
        again = fit(*given)
        assert "scores of another bundle" in again.output


def test_fitted_to_the_teacher(tmp_path: Path) -> None:
    bundle = toy.build_bundle(tmp_path / "a.bundle", formulation=2)
    result = fit(bundle, *QUICK)
    assert result.exit_code == 0, result.output
    for proof in fitted(bundle)["record"]["fits"]:
        if proof["candidate"] is not None:
            assert proof["score"]["fd"] <= proof["plain"]["fd"]
            assert len(proof["candidate"]["timesteps"]) == proof["calls"]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (None, ["--start", "image"], "has no start image; expected 'noise'"),
        (1, ["--images", "absent.npz"], "found nothing that can be read"),
        (1, ["--images", "absent.npz", "--network", "lite"], "network is 'lite'; expected one of efficientnet-lite0"),
        (1, ["--record", "."], "found a folder"),
        (1, ["--take", "a.json", "--images", "b.npz"], "--images: found --take too, which does not search; expected one of"),
    ],
)
def test_refusals(tmp_path: Path, kind: int | None, options: list[str], words: str) -> None:
    bundle = toy.build_bundle(tmp_path / "a.bundle", kind)
    result = fit(bundle, *options, *QUICK)
    assert (result.exit_code, words in result.output) == (1, True), result.output
    assert fitted(bundle) is None


def test_saved_settings_are_taken_by_a_bundle_of_the_same_checkpoint_alone(tmp_path: Path) -> None:
    bundle, other, file = tmp_path / "a.bundle", tmp_path / "b.bundle", tmp_path / "settings.json"
    for path in (bundle, other):
        toy.build_bundle(path)
    done = fit(bundle, "--calls", 2, "--save", file)
    assert done.exit_code == 0, done.output
    done = fit(other, "--take", file)
    assert "Wrote 1 fitted settings" in done.output
    assert fitted(other) == fitted(bundle)
    saved = json.loads(file.read_bytes())
    for change, words in (
        ({"checkpoint": "f" * 64}, r"settings of the checkpoint f{12}…, expected those of this bundle's"),
        ({"settings": None}, r"without checkpoint, record, settings, expected --save's file"),
        ({"settings": [{"steps": 2}]}, r"fitted.settings\[0\]"),
    ):
        file.write_text(json.dumps(saved | change))
        refused = fit(other, "--take", file)
        assert refused.exit_code == 1
        assert re.search(words, refused.output.replace("\n", " ")), refused.output
        assert fitted(other) == fitted(bundle)


def test_help_is_the_checked_in_text() -> None:
    found = fit("--help").output.replace("Usage: main ", "Usage: fit_setting.py ")
    hint = "update it with: python export/fit_setting.py --help > tests/help/fit_setting.txt"
    assert found == (ROOT / "tests/help/fit_setting.txt").read_text(), hint
