"""Which arguments do the kernels accept? The checks before a pointer is handed to native code, a few microseconds each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.kernels.errors import KernelArgumentError

# Which coefficients of a row need which operand.
_NEEDED_BY = {"cond": ("p_cond", "k_cond"), "x0_prev": ("k_prev",)}


def _describe(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}"
    layout = "" if value.flags.c_contiguous else "non-contiguous "
    return f"{layout}{value.dtype} {list(value.shape)}"


def array(name: str, value: Any, dtype: type, shapes: tuple[tuple[int, ...], ...] = (), *, writable: bool = False) -> None:
    """Refuses all but an aligned C-contiguous array of `dtype` with one of `shapes` (any shape when empty)."""
    if (
        isinstance(value, np.ndarray)
        and value.dtype == dtype
        and value.flags.c_contiguous
        and value.flags.aligned
        and (not shapes or value.shape in shapes)
        and (not writable or value.flags.writeable)
    ):
        return
    wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
    raise KernelArgumentError(
        f"{name} is {_describe(value)}; expected {'writable ' if writable else ''}C-contiguous, aligned "
        f"{np.dtype(dtype)} {wanted}".rstrip() + ": np.ascontiguousarray makes such a copy"
    )


def float32(name: str, value: Any, *shapes: tuple[int, ...], writable: bool = False) -> None:
    array(name, value, np.float32, shapes, writable=writable)


def seeds(value: Any, samples: int | None = None) -> None:
    """Seeds are uint64 [N], one a sample."""
    array("seeds", value, np.uint64, () if samples is None else ((samples,),))
    if value.ndim != 1:
        raise KernelArgumentError(f"seeds have shape {list(value.shape)}; expected [N], one seed a sample")


def word(name: str, value: int) -> None:
    if not 0 <= value < 2**32:
        raise KernelArgumentError(f"{name} is {value}; expected 0 .. 2**32 - 1")


def row(value: Any) -> list[float]:
    """The coefficients as Python floats; all finite, but clip, which is 0 .. infinity."""
    float32("row", value, (10,))
    coefficients: list[float] = value.tolist()
    if not math.isfinite(sum(coefficients[:9])) or not coefficients[9] >= 0:
        raise KernelArgumentError(f"row is {coefficients}; expected nine finite coefficients, then clip >= 0 or infinity")
    return coefficients


def update_arrays(
    x: Any, eps: Any, operands: Mapping[str, Any], noise: Any, out: Any, x0_out: Any
) -> None:
    """Types and shapes of one step's arrays."""
    float32("x", x)
    if x.ndim == 0:
        raise KernelArgumentError("x is a single number; expected an array [N, ...], one entry a sample")
    float32("eps", eps, x.shape)
    for name, operand in operands.items():
        if operand is not None:
            float32(name, operand, x.shape)
    if noise is not None:
        float32("noise", noise, x.shape, (1, *x.shape[1:]))
    float32("out", out, x.shape, writable=True)
    if x0_out is not None:
        float32("x0_out", x0_out, x.shape, writable=True)


def noise_source(x: NDArray[np.float32], noise: Any, seeds_: Any, step: int | None) -> int:
    """Noise comes from an array or from seeds and step, not from both; returns the step as a number."""
    if (seeds_ is None) != (step is None):
        raise KernelArgumentError("seeds and step go together: pass both to have the noise generated, or neither")
    if seeds_ is None or step is None:
        return 0
    if noise is not None:
        raise KernelArgumentError("noise and seeds are both given: pass the array, or seeds and step")
    seeds(seeds_, x.shape[0])
    word("step", step)
    return step


def operands_present(
    coefficients: Mapping[str, float], guidance: float, operands: Mapping[str, Any], has_noise: bool
) -> None:
    """A coefficient other than 0 needs its operand: an absent one would silently count as zeros."""
    for name, users in _NEEDED_BY.items():
        used = [field for field in users if coefficients[field] != 0]
        if used and operands[name] is None:
            raise KernelArgumentError(f"the row has {used[0]} = {coefficients[used[0]]} but {name} is absent: pass {name}")
    if coefficients["sigma"] != 0 and not has_noise:
        raise KernelArgumentError(
            f"the row has sigma = {coefficients['sigma']} but no noise: pass noise, or seeds and step"
        )
    if guidance != 0 and operands["eps_uncond"] is None:
        raise KernelArgumentError(f"guidance is {guidance} but eps_uncond is absent: pass eps_uncond, or guidance=0")


def overlaps(
    results: Mapping[str, NDArray[np.float32] | None], operands: Mapping[str, NDArray[np.float32] | None]
) -> None:
    """A result may lie exactly on an operand, not partly on one, and not on the other result."""
    earlier: dict[str, NDArray[np.float32]] = {}
    for name, result in results.items():
        if result is None:
            continue
        for other, operand in operands.items():
            if operand is None or operand is result or not np.may_share_memory(result, operand):
                continue
            if (result.ctypes.data, result.nbytes) != (operand.ctypes.data, operand.nbytes):
                _refuse_overlap(name, other)
        for other, previous in earlier.items():
            if np.may_share_memory(result, previous):
                _refuse_overlap(name, other)
        earlier[name] = result


def _refuse_overlap(name: str, other: str) -> None:
    raise KernelArgumentError(f"{name} overlaps {other}: expected separate memory, or an operand as a whole")
