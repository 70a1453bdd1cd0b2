"""What can be done to arrays fast? One solver step, seeded normals, images to bytes: checked here, run by the library.

Nothing here knows networks or solvers: a step is a row of ten coefficients (include/diffusevae/row.h). Errors are
KernelArgumentError for arguments and, at import, KernelLoadError when the compiled library is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.kernels import checks
from engine.kernels.errors import KernelArgumentError, KernelError, KernelLoadError
from engine.kernels.loader import load

__all__ = [
    "ROW_FIELDS", "STREAM_PRIOR", "STREAM_STEP", "STREAM_X_T", "STREAM_Z", "KernelArgumentError", "KernelError",
    "KernelLoadError", "implementation", "normal", "philox4x32", "to_uint8", "update",
]  # fmt: skip

ROW_FIELDS = ("p_x", "p_eps", "p_cond", "k_x0", "k_prev", "k_x", "k_eps", "k_cond", "sigma", "clip")
STREAM_Z, STREAM_X_T, STREAM_STEP, STREAM_PRIOR = 0, 1, 2, 3

_kernels = load()


def implementation() -> dict[str, str]:
    """What runs: {"name": "native", "isa", "path"} or {"name": "numpy", "isa", "reason"}."""
    return _kernels.describe()


def update(
    row: NDArray[np.float32],
    x: NDArray[np.float32],
    eps: NDArray[np.float32],
    *,
    eps_uncond: NDArray[np.float32] | None = None,
    guidance: float = 0.0,
    cond: NDArray[np.float32] | None = None,
    x0_prev: NDArray[np.float32] | None = None,
    noise: NDArray[np.float32] | None = None,
    seeds: NDArray[np.uint64] | None = None,
    step: int | None = None,
    out: NDArray[np.float32] | None = None,
    x0_out: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> bool:
    """One step of any solver, in one pass over memory:

        eps = eps + guidance (eps - eps_uncond)
        x0  = clip(p_x x + p_eps eps + p_cond cond)
        x'  = k_x0 x0 + k_prev x0_prev + k_x x + k_eps eps + k_cond cond + sigma noise

    row is float32 [10] in the order of ROW_FIELDS; x and every other operand are C-contiguous float32 of one shape
    [N, ...] and any length. x' goes to `out` (x itself when None: in place), x0 to `x0_out` when given. Both may be
    one of the operands, but not partly overlap one. An operand whose coefficients are all 0 is not read (a noise
    generator not run); one that is absent although its coefficient is not 0 is an error.
    noise: the step's normals, [N, ...], or [1, ...] shared by the batch; or instead `seeds` (uint64 [N]) and `step`:
    the kernel generates them and needs no buffer, to the bits of normal(seeds, STREAM_STEP, step, ...). threads is
    a limit: another thread is started for every whole million (2**20) elements only.
    Returns True when every (guided) eps was finite: the NaN guard, part of the same pass.
    Raises KernelArgumentError.
    """
    out = x if out is None else out
    operands = {"eps_uncond": eps_uncond, "cond": cond, "x0_prev": x0_prev}
    coefficients = dict(zip(ROW_FIELDS, checks.row(row), strict=True))
    checks.update_arrays(x, eps, operands, noise, out, x0_out)
    number = checks.noise_source(x, noise, seeds, step)
    checks.operands_present(coefficients, guidance, operands, noise is not None or seeds is not None)
    checks.overlaps({"out": out, "x0_out": x0_out}, {"x": x, "eps": eps, **operands, "noise": noise})
    if guidance == 0:
        eps_uncond = None
    if coefficients["p_cond"] == 0 and coefficients["k_cond"] == 0:
        cond = None
    if coefficients["k_prev"] == 0:
        x0_prev = None
    if coefficients["sigma"] == 0:
        noise = seeds = None
    return _kernels.update(
        row, x, eps, eps_uncond=eps_uncond, guidance=guidance, cond=cond, x0_prev=x0_prev, noise=noise, seeds=seeds,
        step=number, out=out, x0_out=x0_out, threads=max(1, threads),
    )  # fmt: skip


def normal(
    seeds: NDArray[np.uint64], stream: int, step: int, count: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Standard normals, float32 [N, count], for seeds uint64 [N]: Philox4x32-10 and Box-Muller.

    A sample's numbers depend on (seed, stream, step, element) alone: the same in any batch and in every
    implementation, bit for bit. stream and step are in 0 .. 2**32 - 1 (STREAM_Z, STREAM_X_T, STREAM_STEP).
    """
    checks.seeds(seeds)
    checks.word("stream", stream)
    checks.word("step", step)
    if count < 0:
        raise KernelArgumentError(f"count is {count}; expected 0 or more elements a sample")
    if out is None:
        out = np.empty((seeds.size, count), np.float32)
    else:
        checks.float32("out", out, (seeds.size, count), writable=True)
    _kernels.normal(seeds, stream, step, count, out)
    return out


def to_uint8(x: NDArray[np.float32], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Images for people: float32 [N, C, H, W] in [-1, 1] to uint8 [N, H, W, C], clipped, rounded half up; NaN is 0."""
    checks.float32("x", x)
    if x.ndim != 4:
        raise KernelArgumentError(f"x has shape {x.shape}; expected [N, C, H, W]")
    shape = (x.shape[0], x.shape[2], x.shape[3], x.shape[1])
    if out is None:
        out = np.empty(shape, np.uint8)
    else:
        checks.array("out", out, np.uint8, (shape,), writable=True)
    _kernels.to_uint8(x, out)
    return out


def philox4x32(counter: Any, key: Any) -> NDArray[np.uint32]:
    """One block of Philox4x32-10: four words of counter and two of key to four words (known-answer tests)."""
    words = np.asarray(counter, np.uint32), np.asarray(key, np.uint32)
    if words[0].shape != (4,) or words[1].shape != (2,):
        raise KernelArgumentError(f"counter and key have {words[0].size} and {words[1].size} words; expected 4 and 2")
    return _kernels.philox4x32(*words)
