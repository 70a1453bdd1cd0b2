"""Tensors as a manifest declares them: name, dtype, shape with named free dimensions, range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from engine.bundle.fields import Fields
from engine.bundle.limits import MAX_DIMENSION, MAX_RANK
from engine.bundle.schema import read

DTYPES = ("float32", "int64", "uint8")
BATCH = "batch"  # the dimension of samples
STEPS = "steps"  # the free dimension of a table of timesteps
IMAGE_CHANNELS = (1, 3, 4)

Shape = tuple[int | str, ...]
Range = tuple[float, float] | None


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: a text in `shape` is a free dimension; `range` None means unbounded, else both ends belong to it."""

    name: Annotated[str, Fields.text]
    dtype: Annotated[str, Fields.choice, DTYPES]
    shape: Annotated[Shape, parse_shape]
    range: Annotated[Range, parse_range]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def sample(self) -> Shape:
        """The shape of one sample: without the batch."""
        return self.shape[1:]


def parse_tensors(fields: Fields, key: str) -> tuple[TensorSpec, ...]:
    """A list of tensors, at least one, each under its own name."""
    tensors = tuple(read(TensorSpec, entry) for entry in fields.objects(key, "a list of tensors"))
    if len({tensor.name for tensor in tensors}) < len(tensors):
        fields.refuse(key, "a name of its own for each tensor")
    return tensors


def parse_shape(fields: Fields, key: str) -> Shape:
    """Names of free dimensions and positive integers."""
    dims = fields.items(key, "a list of dimensions")
    if len(dims) > MAX_RANK:
        fields.refuse(key, f"at most {MAX_RANK} dimensions")
    if not all((type(d) is str and d.isidentifier()) or (type(d) is int and 1 <= d <= MAX_DIMENSION) for d in dims):
        fields.refuse(key, "dimensions that are names or positive integers")
    return tuple(dims)


def parse_range(fields: Fields, key: str) -> Range:
    """[low, high], or None where it is unbounded."""
    expected = "'unbounded' or [low, high]"
    value = fields.take(key, expected)
    if value == "unbounded":
        return None
    if type(value) is not list or len(value) != 2 or any(type(v) not in (int, float) for v in value):
        fields.refuse(key, expected)
    if not value[0] < value[1]:
        fields.refuse(key, "[low, high] with low < high")
    return float(value[0]), float(value[1])


Null = npt.NDArray[Any]
_INTEGERS = {"int64": (-(2**63) + 1, 2**63 - 1), "uint8": (0, 255)}
_FLOAT_MAX = float(np.finfo(np.float32).max)


class ByValue:
    """Equality of dataclasses that hold arrays: as a whole, where numpy would answer element by element."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and _plain(vars(self)) == _plain(vars(other))

    __hash__ = None  # type: ignore[assignment]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return (value.dtype.name, value.shape, value.tolist()) if isinstance(value, np.ndarray) else value


def parse_null(fields: Fields, key: str, shape: Shape, dtype: str, limits: tuple[float, float] | None) -> Null | None:
    """The null of a value, one sample of it as an array of `dtype`: None where the field is null.

    shape: of one sample. A number fills it; a nested list must have exactly its shape, which then is fixed.
    """
    value = fields.take(key, "a number, a nested list, or null")
    if value is None:
        return None
    fixed = [d for d in shape if isinstance(d, int)]
    if type(value) is list:
        expected = f"a number, or a list of shape {list(shape)}"
        if len(fixed) != len(shape) or _shape_of(value) != tuple(shape):
            fields.refuse(key, expected)
        numbers = _flat(value)
    else:
        expected = "a number, a nested list, or null"
        numbers = [value]
    kinds, kind = ((int,), "integers") if dtype in _INTEGERS else ((int, float), "numbers")
    if any(type(number) not in kinds for number in numbers):
        fields.refuse(key, f"{kind} of {dtype}")
    if limits is not None and not all(limits[0] <= number <= limits[1] for number in numbers):
        fields.refuse(key, f"numbers within the range [{limits[0]:g}, {limits[1]:g}]")
    lowest, highest = _INTEGERS.get(dtype, (-_FLOAT_MAX, _FLOAT_MAX))
    if not all(lowest <= number <= highest for number in numbers):
        fields.refuse(key, f"{kind} of {dtype}")
    array = np.array(numbers, dtype)
    return array.reshape(tuple(fixed)) if type(value) is list else array.reshape(())


def _shape_of(value: object) -> tuple[int, ...] | None:
    """The shape of a nested list; None where it is ragged or empty."""
    if type(value) is not list:
        return ()
    parts = {_shape_of(item) for item in value}
    inner = next(iter(parts)) if len(parts) == 1 else None
    return None if inner is None else (len(value), *inner)


def _flat(value: Any) -> list[Any]:
    return [number for item in value for number in _flat(item)] if type(value) is list else [value]


def elements(shape: tuple[int, ...]) -> int:
    """Numbers in an array of this shape."""
    return math.prod(shape)
