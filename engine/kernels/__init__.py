"""Fast work on arrays: one row of a solver, seeded normals, images to bytes; checked here, run by the compiled library.

Nothing here knows networks or solvers: a row is 31 coefficients (kernels/include/diffusevae/row.h). Errors are
KernelArgumentError for arguments and, at the first call, KernelLoadError when the compiled library is missing.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.kernels import checks
from engine.kernels.errors import KernelArgumentError, KernelError, KernelLoadError
from engine.kernels.loader import Kernels, load
from engine.kernels.operands import INDEX, ROW_FIELDS, USERS, Operands, Q

__all__ = [
    "ROW_FIELDS", "STREAM_AUGMENT", "STREAM_FRESH", "STREAM_KNOWN", "STREAM_PRIOR", "STREAM_STAGE", "STREAM_STEP",
    "STREAM_X_T", "STREAM_Z",
    "KernelArgumentError", "KernelError", "KernelLoadError", "enlarge", "implementation",
    "mixture", "normal", "philox4x32", "to_uint8", "update",
]  # fmt: skip

STREAM_Z, STREAM_X_T, STREAM_STEP, STREAM_PRIOR, STREAM_KNOWN, STREAM_AUGMENT, STREAM_STAGE, STREAM_FRESH = range(8)


@functools.cache
def _kernels() -> Kernels:
    """The implementation, chosen at the first call: importing the package must not fail where a library is missing."""
    return load()


def implementation() -> dict[str, str]:
    """What runs: {"name": "compiled", "isa", "path"} or {"name": "numpy", "isa", "reason"}; or a KernelLoadError."""
    return _kernels().describe()


_ONE = np.ones(1, np.float32)
_PUSH = INDEX["push"]


def update(
    row: NDArray[np.float32],
    x: NDArray[np.float32],
    e: NDArray[np.float32],
    *,
    weights: NDArray[np.float32] | None = None,
    c: NDArray[np.float32] | None = None,
    y: NDArray[np.float32] | None = None,
    h1: NDArray[np.float32] | None = None,
    h2: NDArray[np.float32] | None = None,
    h3: NDArray[np.float32] | None = None,
    g: NDArray[np.float32] | None = None,
    v: NDArray[np.float32] | None = None,
    noise: NDArray[np.float32] | None = None,
    seeds: NDArray[np.uint64] | None = None,
    step: int | None = None,
    out: NDArray[np.float32] | None = None,
    x0_out: NDArray[np.float32] | None = None,
    y_out: NDArray[np.float32] | None = None,
    push_out: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> bool:
    """One row of any solver, in one pass over memory:

        e   = w_0 e_0 + w_1 e_1 + ...
        x0  = limit(p_x x + p_e e + p_c c  [+ p_y y + p_h1 h1 + p_h2 h2 + p_h3 h3], clip)
        n   = exp(s_n v) noise, where s_n is not 0; otherwise the noise itself
        x'  = k_x0 x0 + k_x x + k_e e + k_c c + k_n n  [+ k_y y + k_h1 h1 + k_h2 h2 + k_h3 h3 + k_g g]
        y'  = the same sum with q, where any q is not 0

    The bracketed terms are added where the row has a coefficient of theirs or of q that is not 0. row is float32 [31] in the
    order of ROW_FIELDS; x and every operand are C-contiguous float32 of one shape [N, ...] and any length. e holds the
    lanes one behind the other, [L * N, ...], with `weights` float32 [L]; without weights it is one lane of weight 1.
    x' goes to `out` (x itself when None: in place), x0 to `x0_out`, y' to `y_out`, and what the row pushes (e or x0) to
    `push_out`. Each may be one of the operands (y_out y, push_out h3), but not partly overlap one.
    An operand whose coefficients are all 0 is not read (a noise generator not run), nor is a lane of weight 0; an operand or
    result that is absent although the row needs it is an error.
    noise: the row's normals, [N, ...], or [1, ...] shared by the batch; or instead `seeds` (uint64 [N]) and `step`:
    the kernel generates them and needs no buffer, to the bits of normal(seeds, STREAM_STEP, step, ...). threads is
    a limit: another thread is started for every whole million (2**20) elements only.
    v: the network's second output, of its first lane; exp is a polynomial with the same bits everywhere, s_n v limited to
    -87 .. 88. Returns True when every e, and every v that was read, was finite: the NaN guard, part of the same pass.
    Raises KernelArgumentError.
    """
    out = x if out is None else out
    operands = {"c": c, "y": y, "h1": h1, "h2": h2, "h3": h3, "g": g, "v": v}
    results = {"out": out, "x0_out": x0_out, "y_out": y_out, "push_out": push_out}
    values = checks.row(row)
    weights = _ONE if weights is None else weights
    checks.update_arrays(x, e, weights, operands, noise, results)
    number = checks.noise_source(x, noise, seeds, step)
    checks.present(values, operands, noise is not None or seeds is not None, results)
    checks.overlaps(results, {"x": x, "e": e, **operands, "noise": noise})
    used = {name: None if not any(values[i] for i in USERS[name]) else operands[name] for name in operands}
    if not any(values[i] for i in USERS["n"]):
        noise = seeds = None
    return _kernels().update(
        Operands(
            row, x, e, weights, **used, noise=noise, seeds=seeds, step=number, out=out, x0_out=x0_out,
            y_out=y_out if any(values[Q]) else None, push_out=push_out if values[_PUSH] else None, threads=max(1, threads),
        )
    )  # fmt: skip


def normal(
    seeds: NDArray[np.uint64], stream: int, step: int, count: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Standard normals, float32 [N, count], for seeds uint64 [N]: Philox4x32-10 and Box-Muller.

    A sample's numbers depend on (seed, stream, step, element) alone: the same in any batch and in every
    implementation, bit for bit. stream and step are in 0 .. 2**32 - 1 (STREAM_Z, STREAM_X_T, STREAM_STEP).
    """
    checks.seeds(seeds)
    checks.words(stream=stream, step=step)
    if count < 0:
        raise KernelArgumentError(f"count is {count}; expected 0 or more elements a sample")
    if out is None:
        out = np.empty((seeds.size, count), np.float32)
    else:
        checks.array("out", out, np.float32, ((seeds.size, count),), writable=True)
    _kernels().normal(seeds, stream, step, count, out)
    return out


def mixture(
    seeds: NDArray[np.uint64],
    thresholds: NDArray[np.uint64],
    means: NDArray[np.float32],
    factors: NDArray[np.float32],
    units: NDArray[np.float32],
) -> NDArray[np.float32]:
    """A draw of a Gaussian mixture for each seed, float32 [N, D]: means[k] + factors[k] units, the same in any batch.

    k is the first component with the first word of (seed, STREAM_PRIOR) below thresholds[k]; they are uint64 [K], the last
    2**32. means [K, D], factors [K, D, D], units [N, D]: standard normals. Each row of the product is summed from the left
    and the mean added last: the same bits in every implementation.
    """
    checks.seeds(seeds)
    checks.array("thresholds", thresholds, np.uint64)
    checks.array("means", means, np.float32)
    if means.ndim != 2 or not means.size or thresholds.shape != means.shape[:1] or thresholds[-1] < 2**32:
        raise KernelArgumentError(
            f"thresholds and means have shapes {list(thresholds.shape)} and {list(means.shape)}; expected [K] and [K, D], "
            "and 2**32 as the last threshold"
        )
    components, width = means.shape
    checks.array("factors", factors, np.float32, ((components, width, width),))
    checks.array("units", units, np.float32, ((seeds.size, width),))
    out = np.empty((seeds.size, width), np.float32)
    _kernels().mixture(seeds, thresholds, means, factors, units, out)
    return out


def to_uint8(x: NDArray[np.float32], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Images for people: float32 [N, C, H, W] in [-1, 1] to uint8 [N, H, W, C], clipped, rounded half up; NaN is 0."""
    checks.array("x", x, np.float32)
    if x.ndim != 4:
        raise KernelArgumentError(f"x has shape {x.shape}; expected [N, C, H, W]")
    shape = (x.shape[0], x.shape[2], x.shape[3], x.shape[1])
    if out is None:
        out = np.empty(shape, np.uint8)
    else:
        checks.array("out", out, np.uint8, (shape,), writable=True)
    _kernels().to_uint8(x, out)
    return out


def enlarge(x: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Images at a larger size: float32 [N, C, H, W] to [N, C, height, width], height and width at least those of x.

    Bilinear between the centres of pixels, the outermost ones beyond theirs (torch's `interpolate` without align_corners,
    Pillow's BILINEAR). Nothing exceeds the range of x, and images of the same size stay as they are, bit for bit.
    """
    checks.array("x", x, np.float32)
    if x.ndim != 4 or not x.size or height < x.shape[2] or width < x.shape[3]:
        raise KernelArgumentError(
            f"x has shape {list(x.shape)} for a size of {height} x {width}; expected [N, C, H, W] of at most that size"
        )
    out = np.empty((*x.shape[:2], height, width), np.float32)
    _kernels().enlarge(x, out)
    return out


def philox4x32(counter: Any, key: Any) -> NDArray[np.uint32]:
    """One block of Philox4x32-10: four words of counter and two of key to four words (known-answer tests)."""
    words = np.asarray(counter, np.uint32), np.asarray(key, np.uint32)
    if words[0].shape != (4,) or words[1].shape != (2,):
        raise KernelArgumentError(f"counter and key have {words[0].size} and {words[1].size} words; expected 4 and 2")
    return _kernels().philox4x32(*words)
