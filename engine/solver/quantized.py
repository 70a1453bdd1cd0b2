"""A row whose x0 is replaced before anything is made of it: by the nearest codes of a codebook, say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import kernels
from engine.kernels import ROW_FIELDS
from engine.kernels.operands import PUSH_X0

F32 = NDArray[np.float32]
INDEX = {name: i for i, name in enumerate(ROW_FIELDS)}
PREDICTS = [i for name, i in INDEX.items() if name.startswith("p_")]
FIRST = [*PREDICTS, INDEX["clip"], INDEX["c_in"]]


def halves_of(row: F32) -> tuple[F32, F32]:
    """Two rows, float32 [31] each, that do what one does to x, y and e.

    The first gives x0 as its x' and has no other result. The second takes x0 back in slot g, which no solver reads, and does
    all the rest; where the row pushes x0, its caller pushes what g is.
    """
    first, second = np.zeros_like(row), row.copy()
    first[FIRST], first[INDEX["k_x0"]] = row[FIRST], 1.0
    second[PREDICTS], second[INDEX["clip"]] = 0.0, np.inf
    for which in "kq":
        second[INDEX[f"{which}_g"]] = row[INDEX[f"{which}_x0"]]
        second[INDEX[f"{which}_x0"]] = 0.0
    if row[INDEX["push"]] == PUSH_X0:
        second[INDEX["push"]] = 0.0
    return first, second


def update_quantized(
    row: F32,
    x: F32,
    e: F32,
    quantize: Callable[[F32], F32],
    *,
    x0_out: F32,
    out: F32,
    y_out: F32 | None,
    push_out: F32 | None,
    **operands: Any,
) -> bool:
    """`kernels.update`, with the row's limited x0 taken through `quantize` before x', y' and what is pushed are made of it.

    e is the network's own in all of them, and not derived again from the new x0, as latent diffusion has it.
    x0_out, separate from x, holds the new x0. `quantize` is not called where an e is not finite, which the answer says.
    """
    first, second = halves_of(row)
    if not kernels.update(first, x, e, **operands, out=x0_out):
        return False
    np.copyto(x0_out, quantize(x0_out))
    finite = kernels.update(second, x, e, **operands, g=x0_out, out=out, y_out=y_out, push_out=push_out)
    if row[INDEX["push"]] == PUSH_X0:
        assert push_out is not None, "kernels.update refuses a push without room"
        np.copyto(push_out, x0_out)
    return finite
