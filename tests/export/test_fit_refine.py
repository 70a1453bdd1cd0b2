"""`diffusevae fit-refine` on a toy: damages are what their seeds say, and the table is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engine import Sampler
from engine.bundle.files import MANIFEST_FILE
from export import fit_refine
from export.fitting.damages import FITTED, MEASURED, Damage
from tests import toy
from tests.samplers import ANY_BACKEND

ROOT = Path(__file__).resolve().parents[2]
HERE = ["--backend", ANY_BACKEND, "--precision", "f32", "--threads", 1]
IMAGES = np.random.default_rng(3).integers(60, 196, (10, 8, 8, 3), dtype=np.uint8)


def fit(*arguments: object) -> Result:
    return CliRunner().invoke(fit_refine.main, [str(argument) for argument in (*arguments, *HERE)])


@pytest.mark.parametrize("damage", [*FITTED, *MEASURED], ids=lambda damage: damage.title)
def test_a_damage_depends_on_image_and_seed_alone(damage: Damage) -> None:
    damaged = damage(IMAGES, 5)
    assert damaged.dtype == np.uint8
    assert damaged.shape == IMAGES.shape
    assert (damaged != IMAGES).any()
    np.testing.assert_array_equal(damage(IMAGES[3:], 8), damaged[3:])
    assert damage(IMAGES[..., :1], 5).shape == (10, 8, 8, 1)


def test_the_measured_strengths_are_not_fitted_to() -> None:
    assert {damage.kind for damage in FITTED} == {damage.kind for damage in MEASURED}
    assert not {damage.title for damage in FITTED} & {damage.title for damage in MEASURED}


def test_the_table_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_refine, "STARTS", (4, 200, 900))
    bundle = toy.build_bundle(tmp_path / "a.bundle")
    np.savez(tmp_path / "train.npz", images=IMAGES)
    before = (bundle / MANIFEST_FILE).read_bytes()
    given = (bundle, "--images", tmp_path / "train.npz", "--number", 8)
    assert fit(*given, "--dry-run").exit_code == 0
    assert (bundle / MANIFEST_FILE).read_bytes() == before
    result = fit(*given)
    assert result.exit_code == 0, result.output
    table = json.loads((bundle / MANIFEST_FILE).read_bytes())["refine"]
    scores = list(table["record"]["psnr"].values())
    assert len(table["starts"]) == len(FITTED) + 1
    for row, gained in zip(table["starts"], scores, strict=True):
        assert gained[str(row["t_start"])] == max(gained.values())
    chosen = IMAGES[np.linspace(0, 9, 8).round().astype(int)]
    with Sampler(bundle, ANY_BACKEND, "f32", threads=1) as sampler:
        refined = sampler.refine(chosen, t_start="auto", seed=fit_refine.SEED)
        assert refined.setting.t_start == table["starts"][0]["t_start"]
    assert fit_refine.psnr(refined.images, chosen).mean() == pytest.approx(max(scores[0].values()), abs=1e-3)
    monkeypatch.setattr(Sampler, "refine", None)  # what is in the record is not refined again
    assert fit(*given).exit_code == 0
    assert json.loads((bundle / MANIFEST_FILE).read_bytes())["refine"]["starts"] == table["starts"]


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=IMAGES[:7])
    result = fit(toy.build_bundle(tmp_path / "a.bundle"), "--images", tmp_path / "train.npz")
    assert result.exit_code == 1
    assert "found 7 images, expected at least 8; give more" in result.output


def test_help_is_the_checked_in_text() -> None:
    found = fit("--help").output.replace("Usage: main ", "Usage: fit_refine.py ")
    hint = "update it with: python export/fit_refine.py --help > tests/help/fit_refine.txt"
    assert found == (ROOT / "tests/help/fit_refine.txt").read_text(), hint
