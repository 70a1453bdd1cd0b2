"""How is eps asked of the denoiser: once, for both guidance branches in one batch of 2N, or twice?

Guidance evaluates the denoiser with the condition and without (condition and latent all zeros, as in
training): eps = eps_c + w * (eps_c - eps_u), applied later by the fused update. Each function below has one
signature and returns (eps_c, eps_u or None); `ask_for` chooses. A step costs one evaluation, or two with
guidance, never more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from engine.backends import Graph
from engine.result import F32, Timings

# Up to this many samples, one call on 2N replaces two calls on N. On the CIFAR-10 network (two cores, float32) the two
# ways lay within 5 % of each other at N = 1 and 4; at N = 16 two calls were 10 % faster in ONNX Runtime.
FOLD_LIMIT = 8


class Workspace:
    """The buffers of one batch shape: allocated once, overwritten by every run of that shape.

    With folded guidance `x` and `cond` are the first halves of stacks of 2N, whose second halves are the
    unconditional branch (the condition's second half stays zero for good).
    """

    def __init__(self, n: int, shape: tuple[int, int, int], *, conditional: bool, guided: bool) -> None:
        self.guided = guided
        self.folded = guided and n <= FOLD_LIMIT
        lanes = 2 * n if self.folded else n
        self.x_stack: F32 = np.zeros((lanes, *shape), np.float32)
        self.cond_stack: F32 | None = np.zeros((lanes, *shape), np.float32) if conditional else None
        self.x: F32 = self.x_stack[:n]
        self.cond: F32 | None = None if self.cond_stack is None else self.cond_stack[:n]
        self.x0: F32 = np.empty((n, *shape), np.float32)
        self.x0_prev: F32 = np.empty((n, *shape), np.float32)
        split = guided and not self.folded
        self.eps: F32 = np.empty((n if split else 0, *shape), np.float32)
        self.no_cond: F32 | None = np.zeros((n, *shape), np.float32) if split else None


Ask = Callable[[Graph, Workspace, F32, Timings], "tuple[F32, F32 | None]"]


def ask_once(denoiser: Graph, work: Workspace, row: F32, timings: Timings) -> tuple[F32, F32 | None]:
    """No guidance: eps(x, cond, row)."""
    return _evaluate(denoiser, work.x, work.cond, row, timings), None


def ask_folded(denoiser: Graph, work: Workspace, row: F32, timings: Timings) -> tuple[F32, F32 | None]:
    """Guidance in one call on 2N samples: the upper half of the stacks is the unconditional branch."""
    n = len(work.x)
    work.x_stack[n:] = work.x
    eps = _evaluate(denoiser, work.x_stack, work.cond_stack, row, timings)
    return eps[:n], eps[n:]


def ask_twice(denoiser: Graph, work: Workspace, row: F32, timings: Timings) -> tuple[F32, F32 | None]:
    """Guidance in two calls on N samples; a [2N, R] row is cut in two, a [1, R] row serves both."""
    n = len(work.x)
    with_cond, without = (row, row) if len(row) == 1 else (row[:n], row[n:])
    # The first answer is only valid until the second call, so it is kept in a buffer of its own.
    np.copyto(work.eps, _evaluate(denoiser, work.x, work.cond, with_cond, timings))
    return work.eps, _evaluate(denoiser, work.x, work.no_cond, without, timings)


def ask_for(work: Workspace) -> Ask:
    """The cheapest way to ask for what `work` was allocated for."""
    if not work.guided:
        return ask_once
    return ask_folded if work.folded else ask_twice


def _evaluate(denoiser: Graph, x: F32, cond: F32 | None, row: F32, timings: Timings) -> F32:
    timings.network_calls += 1
    outputs = denoiser(x=x, row=row) if cond is None else denoiser(x=x, cond=cond, row=row)
    return cast(F32, outputs["eps"])
