"""Tables that no executor can run are refused, with the field's name."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import ArgumentError
from engine.kernels import ROW_FIELDS
from engine.solver.schedule import Schedule
from engine.solver.table import METHODS, StepTable, build_step_table, check_table

SCHEDULE = Schedule.from_recipe("linear", 1000, start=1e-4, end=0.02)


def changed(changes: dict[tuple[int, str], float], method: str = "ddim") -> StepTable:
    """A table of five rows, with some fields set."""
    table = build_step_table(SCHEDULE, steps=5, method=method)
    rows = table.rows.copy()
    for (row, field), value in changes.items():
        rows[row, ROW_FIELDS.index(field)] = value
    return replace(table, rows=rows)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {(0, "clip"): math.inf, (1, "clip"): 0.0},
        {(0, "push"): 1, (1, "k_h1"): 0.5},
        {(0, "push"): 2, (1, "push"): 1, (2, "push"): 1, (3, "p_h3"): 0.5, (4, "q_h2"): 1},
        {(0, "push"): 2, (1, "push"): 2, (4, "k_h2"): 0.5},
        {(0, "q_x"): 1, (1, "k_y"): 0.5, (4, "p_y"): 1},
        {(1, "q_x0"): 1, (2, "q_y"): 0.5},
    ],
)
def test_slots_may_be_read_in_any_row_after_they_are_written(changes):
    table = changed(changes)
    assert check_table(table) is None
    assert table.rows.shape == (5, 31)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({(0, "k_h1"): 1}, r"rows\[0\].k_h1 is 1; expected 0: h1 is read before it is written"),
        ({(0, "push"): 1, (0, "p_h1"): 1}, r"rows\[0\].p_h1 is 1; .*before"),
        ({(0, "push"): 1, (1, "p_h2"): -1}, r"rows\[1\].p_h2 is -1; expected 0: h2 .* earlier rows with a push, at least 2"),
        ({(0, "push"): 1, (1, "push"): 2, (3, "k_h3"): 1}, r"rows\[3\].k_h3 is 1; .*h3 is read before it is written"),
        ({(4, "push"): 1, (3, "q_h1"): 2}, r"rows\[3\].q_h1 is 2; expected 0: h1 is read before"),
        ({(0, "k_y"): 1}, r"rows\[0\].k_y is 1; expected 0: y is read before it is written"),
        ({(1, "q_x"): 1, (1, "p_y"): 1}, r"rows\[1\].p_y is 1; expected 0: y is read"),
        ({(2, "q_y"): 1}, r"rows\[2\].q_y is 1; expected 0: y is read before it is written: it takes an earlier row"),
        ({(2, "push"): 3}, r"rows\[2\].push is 3; expected 0 \(nothing\), 1 \(e\) or 2 \(x0\)"),
        ({(2, "push"): 0.5}, r"rows\[2\].push is 0.5; expected"),
        ({(2, "push"): -1}, r"rows\[2\].push is -1; expected"),
        ({(1, "p_x"): math.nan}, r"rows\[1\].p_x is nan; expected a finite number"),
        ({(1, "c_in"): math.inf}, r"rows\[1\].c_in is inf; expected a finite number"),
        ({(3, "k_n"): -math.inf}, r"rows\[3\].k_n is -inf; expected a finite number"),
        ({(3, "clip"): -1}, r"rows\[3\].clip is -1; expected 0 or more, or infinity for no limit"),
        ({(3, "clip"): math.nan}, r"rows\[3\].clip is nan; expected 0 or more"),
        ({(2, "k_g"): 1}, r"rows\[2\].k_g is 1; expected 0: there is no guide"),
        ({(2, "q_g"): 0.5}, r"rows\[2\].q_g is 0.5; expected 0: there is no guide"),
    ],
)
def test_rows_that_cannot_be_run_are_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        check_table(changed(changes))


def test_a_guide_may_be_read_where_there_is_one():
    table = changed({(2, "k_g"): 1, (0, "q_g"): 1})
    check_table(table, guide=True)
    with pytest.raises(ArgumentError, match=r"rows\[0\].q_g is 1; expected 0: there is no guide"):
        check_table(table)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rows": np.zeros((5, 10), np.float32)}, r"rows is float32 \[5, 10\]; expected float32 \[5, 31\]"),
        ({"rows": np.zeros((5, 31))}, r"rows is float64 \[5, 31\]; expected float32"),
        ({"timesteps": np.arange(4)}, r"timesteps is int64 \[4\]; expected int64 \[5\]"),
        ({"timesteps": np.arange(5, dtype=np.int32)}, r"timesteps is int32 \[5\]; expected int64"),
        ({"weights": np.ones((4, 1), np.float32)}, r"weights is float32 \[4, 1\]; expected float32 \[5, 1\]"),
        ({"weights": np.ones((5, 0), np.float32)}, r"weights is float32 \[5, 0\]; expected float32 \[5, 0\], not empty"),
        ({"weights": np.full((5, 2), np.nan, np.float32)}, "weights holds values that are NaN or infinite"),
    ],
)
def test_arrays_of_another_shape_are_refused(arrays, message):
    with pytest.raises(ArgumentError, match=message):
        check_table(replace(build_step_table(SCHEDULE, steps=5), **arrays))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("betas", [[0.999] * 200, [1e-4] + [0.9] * 90, [1e-17] * 10])
def test_schedules_beyond_what_rows_can_hold_are_refused(method, betas):
    """alpha_bar becomes 0, or 1 / sqrt(alpha_bar) infinite in float32, or no step changes anything."""
    schedule = Schedule.from_recipe("table", len(betas), betas=betas)
    with pytest.raises(ArgumentError, match=r"rows\[\d+\]\.\w+ is -?(inf|nan); expected a finite number"):
        build_step_table(schedule, steps=len(betas), method=method, spacing="linspace")


@pytest.mark.parametrize("method", METHODS)
def test_every_solvers_tables_pass(method):
    for steps in (1, 2, 3, 4, 5, 50):
        for centred in (False, True):
            table = build_step_table(SCHEDULE, steps=steps, method=method, centred=centred, spacing="linspace", guidance=2.0)
            assert check_table(table) is None
