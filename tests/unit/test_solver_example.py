"""The solver that docs/solvers.md adds: its code runs, and does what the page says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from engine.kernels import ROW_FIELDS
from engine.solver.methods import METHODS, Method
from engine.solver.schedule import Schedule
from engine.solver.table import build_step_table, check_table
from tests.gaussian_flow import error_of, even_in_noise
from tests.solver_rows import run_kernels

PAGE = (Path(__file__).parents[2] / "docs" / "solvers.md").read_text(encoding="utf-8")


@pytest.fixture
def ab2():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "docs/solvers.md", "exec"), names)
    return names["ab2"]


def test_the_example_is_of_second_order(ab2):
    coarse, fine = error_of(ab2, even_in_noise, 80), error_of(ab2, even_in_noise, 640)
    assert 1.9 < math.log2(coarse / fine) / 3 < 2.3


def test_one_line_makes_it_a_method(ab2, monkeypatch):
    monkeypatch.setitem(METHODS, "ab2", Method(ab2, predictions=("eps",)))
    table = build_step_table(Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02), steps=6, method="ab2", centred=True)
    check_table(table)
    x = np.ones((2, 3), np.float32)
    states = run_kernels(table.timesteps, table.rows, lambda x, t: np.float32(0.5) * x, x, c=0 * x)
    assert len(states) == 6
    assert np.isfinite(states[-1]).all()


def test_the_page_names_every_method_and_field():
    for method in METHODS:
        assert f"| `{method}` |" in PAGE
        assert f"**{method}**" in PAGE
    assert "31 float32 fields" in PAGE
    assert len(ROW_FIELDS) == 31
