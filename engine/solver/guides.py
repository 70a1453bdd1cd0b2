"""What a guide's gradient g becomes before a row adds k_g g: scaled by its mode, one factor a sample, and at each element by
what the network has learned of the variance.

    constant   g
    entropy    g log K / max(H, 1e-6), H the entropy of the classifier's softmax over K classes, in nats (Li et al. 2022)
    norm       g |m| / max(|g|, 1e-30), m the row's x' without noise and gradient (Go et al. 2023)

A row that reads v (s_n is not 0) belongs to a solver whose variance is learned, sigma^2 = k_n^2 exp(2 s_n v): there g is
multiplied by exp(s_n v)^2, as noise is by exp(s_n v).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from engine.kernels import ROW_FIELDS
from engine.kernels.fallback import exponential
from engine.kernels.operands import F32

CONSTANT, BY_ENTROPY, BY_NORM = MODES = ("constant", "entropy", "norm")
LEAST_ENTROPY, LEAST_NORM = 1e-6, 1e-30
S_N = ROW_FIELDS.index("s_n")
OTHERS = [i for i, name in enumerate(ROW_FIELDS) if name.startswith("q_") or name in ("k_n", "k_g", "s_n", "push")]


def mean_row(row: F32) -> F32:
    """The row whose x' is that of this one without noise and gradient, and which leaves y and the history as they are."""
    mean = row.copy()
    mean[OTHERS] = 0.0
    return mean


def scaled_gradient(
    row: F32, g: F32, v: F32 | None, mode: str, entropy: F32 | None, classes: int, mean: Callable[[], F32]
) -> F32:
    """The operand g of a row, of a guide's g and entropy [N]; an array of its own, but for a g that stays what it is.

    mean() is m, asked for where the mode needs it.
    """
    spread = row[S_N]
    if spread != 0.0:
        assert v is not None, "a row reads v of networks that have it"
        share = exponential(spread * v)
        g = (share * share) * g
    if mode == CONSTANT:
        return np.ascontiguousarray(g)
    if mode == BY_ENTROPY:
        assert entropy is not None, "a guide without entropy is refused this mode"
        factors = np.float32(math.log(classes)) / np.maximum(entropy, np.float32(LEAST_ENTROPY))
    else:
        factors = (_norms(mean()) / np.maximum(_norms(g), LEAST_NORM)).astype(np.float32)
    scaled: F32 = np.ascontiguousarray(g * factors[:, None, None, None])
    return scaled


def _norms(x: F32) -> np.ndarray:
    """The length of each sample, float64 [N]."""
    return np.asarray(np.sqrt(np.square(x, dtype=np.float64).sum(axis=(1, 2, 3))))
