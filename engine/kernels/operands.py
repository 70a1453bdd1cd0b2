"""What travels from `update` to the kernel that runs it: the arrays and numbers of one row, checked and complete."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]

# struct Row of include/diffusevae/row.h, in memory order.
ROW_FIELDS = (
    "p_x", "p_e", "p_c", "p_y", "p_h1", "p_h2", "p_h3",
    "k_x0", "k_x", "k_e", "k_c", "k_n", "k_y", "k_h1", "k_h2", "k_h3", "k_g",
    "q_x0", "q_x", "q_e", "q_c", "q_n", "q_y", "q_h1", "q_h2", "q_h3", "q_g",
    "clip", "s_n", "c_in", "push",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(ROW_FIELDS)}
Q = slice(INDEX["q_x0"], INDEX["clip"])
PUSH_NOTHING, PUSH_E, PUSH_X0 = 0, 1, 2

# Which coefficients of a row need which operand.
USERS = {
    name: tuple(INDEX[f"{letter}_{name}"] for letter in "pkq" if f"{letter}_{name}" in INDEX)
    for name in ("c", "n", "y", "h1", "h2", "h3", "g")
} | {"v": (INDEX["s_n"],)}
# Coefficients that make a row a full one: it reads or writes more than x, e, c and n.
FULL = tuple(sorted({*range(Q.start, Q.stop), *(i for name in ("y", "h1", "h2", "h3", "g", "v") for i in USERS[name])}))


_NOTHING = ctypes.c_char * 0


def address(array: NDArray[Any]) -> int:
    """Where the elements of a C-contiguous array lie; good as long as the array is held."""
    # The general way, array.ctypes, takes 1.5 us, and a run of a small network has a dozen arrays.
    if array.flags.writeable:
        return ctypes.addressof(_NOTHING.from_buffer(array))  # type: ignore[arg-type]  # numpy says so from Python 3.12 on
    return array.ctypes.data


def address_or_none(array: NDArray[Any] | None) -> int | None:
    """The same of an array that may be absent."""
    return None if array is None else address(array)


@dataclass(frozen=True)
class Operands:
    """One row over x; what the row does not read or write is None. e: [lanes * n, ...], `weights` of one each."""

    row: F32
    x: F32
    e: F32
    weights: F32
    c: F32 | None
    y: F32 | None
    h1: F32 | None
    h2: F32 | None
    h3: F32 | None
    g: F32 | None
    v: F32 | None
    noise: F32 | None
    seeds: U64 | None
    step: int
    out: F32
    x0_out: F32 | None
    y_out: F32 | None
    push_out: F32 | None
    threads: int
