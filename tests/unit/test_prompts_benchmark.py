"""benchmarks/quality/prompts.py: which rows it measures and what it counts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import prompts
from engine.bundle.fitted import as_defaults
from engine.bundle.training import Defaults


def held_out(codes: list[list[int]], told: list[list[bool]]) -> prompts.Heldout:
    images, tokens = np.zeros((len(codes), 4, 4, 3), np.uint8), np.zeros((len(codes), 3), np.int64)
    return prompts.Heldout(images, tokens, np.array(codes), np.array(told))


def test_only_what_the_prompt_names_counts() -> None:
    faces = held_out([[0, 1, 2, 3], [1, 1, 0, 0]], [[True, True, False, False], [True, False, True, True]])
    found = prompts.shown(np.array([[0, 0, 0, 0], [1, 0, 0, 1]]), faces)
    assert found == {"hair": 1.0, "glasses": 0.0, "beard": 1.0, "skin": 0.0, "all": 0.6}


def test_fitted_rows_are_those_that_the_bundle_has() -> None:
    options = {"timesteps": (900, 200), "eta": 1.0, "noise_scale": 0.9, "eps_scale": 1.01}
    setting = Defaults(**as_defaults(options))
    fitted = SimpleNamespace(get=lambda steps: setting if steps == 2 else None)
    sampler: Any = SimpleNamespace(bundle=SimpleNamespace(manifest=SimpleNamespace(fitted=fitted)))
    measured = list(prompts.rows(sampler, (2, 5), (1, 3)))
    assert [(row["steps"], row["setting"]) for row, _ in measured] == [(2, "plain"), (2, "fitted"), (5, "plain")] * 2
    assert [options["guidance"] for _, options in measured] == [row["scale"] - 1 for row, _ in measured]
    assert measured[1][1]["timesteps"] == (900, 200)


def test_the_guide_shows_the_figures_of_its_file() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
    root = Path(__file__).parents[2]
    figures = json.loads((root / "docs" / "prompts.json").read_text(encoding="utf-8"))
    schema = (root / "benchmarks" / "schema" / "prompts.schema.json").read_text(encoding="utf-8")
    jsonschema.validate(figures, json.loads(schema))
    assert prompts.table(figures) in (root / "docs" / "latent-diffusion.md").read_text(encoding="utf-8")
