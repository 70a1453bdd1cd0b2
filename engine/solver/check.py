"""Rows that no executor can run are refused here, before anything runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import ArgumentError
from engine.kernels import ROW_FIELDS

PUSH, CLIP = ROW_FIELDS.index("push"), ROW_FIELDS.index("clip")
FINITE = [i for i in range(len(ROW_FIELDS)) if i != CLIP]
Q = [i for i, name in enumerate(ROW_FIELDS) if name.startswith("q_")]
READS = {slot: [i for i, name in enumerate(ROW_FIELDS) if name[1:] == f"_{slot}"] for slot in ("y", "h1", "h2", "h3", "g")}


def check_rows(rows: NDArray[np.float32], *, guide: bool = False) -> None:
    """ArgumentError for a coefficient that is not finite, a clip below 0, a push that is none of 0, 1 and 2, a slot that is
    read before it is written, and a guide's gradient where there is no guide."""
    _refuse(~np.isfinite(rows[:, FINITE]), FINITE, rows, "a finite number")
    _refuse(~(rows[:, [CLIP]] >= 0), [CLIP], rows, "0 or more, or infinity for no limit")
    _refuse(~np.isin(rows[:, [PUSH]], (0, 1, 2)), [PUSH], rows, "0 (nothing), 1 (e) or 2 (x0)")
    if not guide:
        _refuse(rows[:, READS["g"]] != 0, READS["g"], rows, "0: there is no guide")
    pushed = _before(rows[:, PUSH] != 0)
    for depth in (1, 2, 3):
        read = READS[f"h{depth}"]
        early = (rows[:, read] != 0) & (pushed < depth)[:, None]
        needs = f"it takes earlier rows with a push, at least {depth}"
        _refuse(early, read, rows, f"0: h{depth} is read before it is written: {needs}")
    written = _before((rows[:, Q] != 0).any(axis=1))
    early = (rows[:, READS["y"]] != 0) & (written == 0)[:, None]
    _refuse(early, READS["y"], rows, "0: y is read before it is written: it takes an earlier row with a q")


def _before(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the earlier rows are marked."""
    return np.cumsum(marks) - marks


def _refuse(wrong: NDArray[np.bool_], fields: list[int], rows: NDArray[np.float32], expected: str) -> None:
    if not wrong.any():
        return
    row, column = (int(index) for index in np.argwhere(wrong)[0])
    field = fields[column]
    raise ArgumentError(f"rows[{row}].{ROW_FIELDS[field]} is {rows[row, field]:g}; expected {expected}")
