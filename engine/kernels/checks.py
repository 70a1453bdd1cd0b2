"""Checks of the kernels' arguments, before a pointer is handed to compiled code: a few microseconds each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.kernels.errors import KernelArgumentError
from engine.kernels.operands import INDEX, PUSH_E, PUSH_NOTHING, PUSH_X0, ROW_FIELDS, USERS, Q

_CLIP, _PUSH, _LAST = INDEX["clip"], INDEX["push"], (INDEX["s_n"], INDEX["c_in"])
_PUSHES = (PUSH_NOTHING, PUSH_E, PUSH_X0)


def _describe(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"a {type(value).__name__}"
    layout = "" if value.flags.c_contiguous else "non-contiguous "
    return f"{layout}{value.dtype} {list(value.shape)}"


def array(name: str, value: Any, dtype: type, shapes: tuple[tuple[int, ...], ...] = (), *, writable: bool = False) -> None:
    """Refuses all but an aligned C-contiguous array of `dtype` with one of `shapes` (any shape when empty)."""
    if isinstance(value, np.ndarray) and value.dtype == dtype and (not shapes or value.shape in shapes):
        flags = value.flags
        if flags.c_contiguous and flags.aligned and (not writable or flags.writeable):
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


def words(**values: int) -> None:
    for name, value in values.items():
        if not 0 <= value < 2**32:
            raise KernelArgumentError(f"{name} is {value}; expected 0 .. 2**32 - 1")


def row(value: Any) -> list[float]:
    """The coefficients as Python floats; all finite, but clip, which is 0 .. infinity, and push, which is 0, 1 or 2."""
    float32("row", value, (len(ROW_FIELDS),))
    values: list[float] = value.tolist()
    if not math.isfinite(sum(values[:_CLIP])) or not all(math.isfinite(values[i]) for i in _LAST):
        named = zip(ROW_FIELDS, values, strict=True)
        bad = [f"{name} = {number}" for name, number in named if name != "clip" and not math.isfinite(number)]
        raise KernelArgumentError(f"the row has {', '.join(bad)}; expected finite coefficients, clip alone may be infinity")
    if not values[_CLIP] >= 0:
        raise KernelArgumentError(f"the row has clip = {values[_CLIP]}; expected clip >= 0, or infinity for no limit")
    if values[_PUSH] not in _PUSHES:
        raise KernelArgumentError(f"the row has push = {values[_PUSH]}; expected 0 (nothing), 1 (e) or 2 (x0)")
    return values


def update_arrays(
    x: Any, e: Any, weights: Any, operands: Mapping[str, Any], noise: Any, results: Mapping[str, Any]
) -> None:
    """Types and shapes of one row's arrays."""
    float32("x", x)
    if x.ndim == 0:
        raise KernelArgumentError("x is a single number; expected an array [N, ...], one entry a sample")
    float32("weights", weights)
    if weights.ndim != 1 or weights.size == 0:
        raise KernelArgumentError(f"weights have shape {list(weights.shape)}; expected [L], one weight a lane")
    float32("e", e, (weights.size * x.shape[0], *x.shape[1:]))
    for name, operand in operands.items():
        if operand is not None:
            float32(name, operand, x.shape)
    if noise is not None:
        float32("noise", noise, x.shape, (1, *x.shape[1:]))
    for name, result in results.items():
        if result is not None:
            float32(name, result, x.shape, writable=True)


def noise_source(x: NDArray[np.float32], noise: Any, seeds_: Any, step: int | None) -> int:
    """Noise comes from an array or from seeds and step, not from both; returns the step as a number."""
    if (seeds_ is None) != (step is None):
        raise KernelArgumentError("seeds and step go together: pass both to have the noise generated, or neither")
    if seeds_ is None or step is None:
        return 0
    if noise is not None:
        raise KernelArgumentError("noise and seeds are both given: pass the array, or seeds and step")
    seeds(seeds_, x.shape[0])
    words(step=step)
    return step


def present(values: list[float], operands: Mapping[str, Any], has_noise: bool, results: Mapping[str, Any]) -> None:
    """A coefficient other than 0 needs its operand (an absent one would silently count as zeros), and a result its room."""
    for name, operand in operands.items():
        if operand is None and any(values[i] for i in USERS[name]):
            raise KernelArgumentError(f"the row has {_used(values, USERS[name])} but {name} is absent: pass {name}")
    if not has_noise and any(values[i] for i in USERS["n"]):
        raise KernelArgumentError(
            f"the row has {_used(values, USERS['n'])} but no noise: pass noise, or seeds and step"
        )
    if results["y_out"] is None and any(values[Q]):
        raise KernelArgumentError(
            f"the row has {_used(values, range(Q.start, Q.stop))} but y_out is absent: pass y_out, which may be y"
        )
    if results["push_out"] is None and values[_PUSH]:
        raise KernelArgumentError(
            f"the row has push = {values[_PUSH]:g} but push_out is absent: pass push_out, which may be h3"
        )


def _used(values: list[float], fields: Iterable[int]) -> str:
    """The first of these coefficients that is not 0, for a message."""
    return next(f"{ROW_FIELDS[i]} = {values[i]}" for i in fields if values[i])


def overlaps(
    results: Mapping[str, NDArray[np.float32] | None], operands: Mapping[str, NDArray[np.float32] | None]
) -> None:
    """A result may lie exactly on an operand, not partly on one, and not on another result."""
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
