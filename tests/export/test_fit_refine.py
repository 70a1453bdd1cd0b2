"""`diffusevae fit-refine` on a toy: damages are what their seeds say, and the table is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engine import Sampler
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.starts import looks
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
    rows, starts = table["damages"], table["t_starts"]
    assert table["record"]["damages"] == ["none", *(damage.title for damage in FITTED)]
    assert (starts, len(rows)) == ([900, 200, 9], len(FITTED) + 1)
    chosen = IMAGES[np.linspace(0, 9, 8).round().astype(int)]
    with Sampler(bundle, ANY_BACKEND, "f32", threads=1) as sampler:
        for row, damage in ((rows[0], None), (rows[2], FITTED[1])):
            damaged = IMAGES if damage is None else damage(IMAGES, fit_refine.SEED)
            measured = looks(np.stack(sampler.estimate_damage(damaged), 1))
            np.testing.assert_allclose(row["mean"], measured.mean(0), atol=1e-4)
            np.testing.assert_allclose(row["spread"], measured.std(0) + fit_refine.SPREAD, atol=1e-4)
            damaged = chosen if damage is None else damage(chosen, fit_refine.SEED)
            for start, gained in zip(starts, row["psnr"], strict=True):
                refined = sampler.refine(damaged, t_start=start, seed=fit_refine.SEED).images
                assert fit_refine.psnr(refined, chosen).mean() == pytest.approx(gained, abs=1e-3)
    monkeypatch.setattr(Sampler, "refine", None)  # what the table says already is not refined again
    assert fit(*given, "--save", tmp_path / "starts.json").exit_code == 0
    assert json.loads((bundle / MANIFEST_FILE).read_bytes())["refine"]["damages"] == rows
    other = toy.build_bundle(tmp_path / "b.bundle")
    assert f"Wrote a table of {len(rows)} damages" in fit(other, "--take", tmp_path / "starts.json").output
    assert json.loads((other / MANIFEST_FILE).read_bytes())["refine"]["damages"] == rows
    refused = fit(other, "--take", tmp_path / "starts.json", "--number", 9)
    assert "--number: found --take too, which does not search" in refused.output
    assert "--images: found none, expected training images, or a file to --take" in fit(other).output


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=IMAGES[:7])
    result = fit(toy.build_bundle(tmp_path / "a.bundle"), "--images", tmp_path / "train.npz")
    assert result.exit_code == 1
    assert "found 7 images, expected at least 8; give more" in result.output


def test_help_is_the_checked_in_text() -> None:
    found = fit("--help").output.replace("Usage: main ", "Usage: fit_refine.py ")
    hint = "update it with: python export/fit_refine.py --help > tests/help/fit_refine.txt"
    assert found == (ROOT / "tests/help/fit_refine.txt").read_text(), hint
