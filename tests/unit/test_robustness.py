"""benchmarks/quality/robustness.py on a toy: a row for each damage, as its schema promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.quality import judge, robustness
from engine.bundle.rewriter import write_starts
from engine.bundle.starts import MEASURES
from export.fit_refine import psnr
from export.fitting.damages import MEASURED
from tests import toy
from tests.unit.test_benchmarks import Extractor, check_schema

pytest.importorskip("skimage", reason="the package scikit-image is not installed")


def test_every_damage_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "open_extractor", lambda *_: Extractor())
    monkeypatch.setattr(robustness, "MEASURED", MEASURED[3:6])
    monkeypatch.setattr(robustness, "STARTS", (30, 400))
    bundle = toy.build_bundle(tmp_path / "a.bundle")
    np.savez(tmp_path / "h.npz", images=np.random.default_rng(3).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    given = ["--bundle", bundle, "--heldout", tmp_path / "h.npz", "--out", tmp_path / "r.json", "--images", 4]

    def run(*more: object) -> tuple[int, str]:
        done = CliRunner().invoke(robustness.main, [str(word) for word in (*given, *more, "--threads", 1)])
        return done.exit_code, done.output

    assert "found no table of starts, expected one; fit it with" in run()[1]
    assert "found 9 images, expected at least 10" in run("--images", 8)[1]
    write_starts(bundle, [30], [{"mean": [-1] * MEASURES, "spread": [1] * MEASURES, "psnr": [20]}], {})
    code, output = run("--sweep", 3)
    result = json.loads((tmp_path / "r.json").read_text())
    check_schema("robustness", result)
    assert [row["damage"] for row in result["rows"]] == ["none", *(damage.title for damage in MEASURED[3:6])]
    for row in result["rows"]:
        assert row["auto"]["t_start"] == 30
        gap = row["sweep"][str(row["best_t_start"])] - row["sweep"]["30"]
        assert row["auto"]["loss"] == pytest.approx(gap, abs=0.011)  # all of them start where the one row says
        assert row["auto"]["loss_alone"] == row["auto"]["loss"]
    beyond = any(row["auto"]["loss"] > robustness.ALLOWED for row in result["rows"])
    assert (code != 0) == beyond == ("auto loses more than 0.3 dB" in output)
    assert (tmp_path / "r.table.md").read_text().count("\n") == len(result["rows"]) + 2
    for name in ("r.png", "r-grid.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_psnr_is_that_of_each_image() -> None:
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    expected = [10 * np.log10(255**2 / 0.25), 10 * np.log10(255**2 / 16)]
    np.testing.assert_allclose(psnr(images + np.uint8([0, 4]).reshape(2, 1, 1, 1), images), expected)
