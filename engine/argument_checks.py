"""Checks of numbers among a caller's arguments; each returns plain Python numbers or raises ArgumentError."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from engine.errors import ArgumentError, did_you_mean


def is_integer(value: object) -> bool:
    """Whether this is one whole number: an int, a numpy scalar or array without dimensions, what has __index__; no bool."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or "bool" in str(getattr(value, "dtype", "")):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def check_integer(name: str, value: Any, expected: str = "an integer") -> int:
    """Refuses what is not a whole number (True and 3.0 included)."""
    if type(value) is int:
        return value
    if not is_integer(value):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected {expected}")
    return operator.index(value)


def check_flag(name: str, value: object) -> bool:
    """Refuses what is neither true nor false."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected True or False")
    return bool(value)


def check_name(name: str, value: object) -> str:
    """Refuses what is no text."""
    if not isinstance(value, str):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected a name")
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Refuses what is none of a few names."""
    if check_name(name, value) not in choices:
        raise ArgumentError(f"{name} is {value!r}; expected one of {', '.join(choices)}.{did_you_mean(str(value), choices)}")
    return str(value)


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """Refuses what is not a finite number in low .. high."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected a number")
    if not (math.isfinite(value) and low <= value <= high):
        if math.isfinite(high):
            wanted = f"a number in {low:g} .. {high:g}"
        else:
            wanted = f"a number of at least {low:g}" if math.isfinite(low) else "a finite number"
        raise ArgumentError(f"{name} is {value}; expected {wanted}")
    return float(value)


Numbers = float | tuple[float, ...]  # one for all steps of a chain, or one a step


def check_numbers(name: str, value: object, low: float, high: float = math.inf) -> Numbers:
    """One number as `check_number` takes it, or a list of them, which becomes a tuple."""
    listed = _listed(value)
    return check_number(name, value, low, high) if listed is None else tuple(
        check_number(f"{name}[{i}]", entry, low, high) for i, entry in enumerate(listed)
    )


def check_integers(name: str, value: object) -> tuple[int, ...]:
    """Refuses what is no list of whole numbers, and an empty one."""
    listed = _listed(value)
    if not listed:
        found = "empty" if listed is not None else f"{value!r}, a {type(value).__name__}"
        raise ArgumentError(f"{name} is {found}; expected a list of integers")
    return tuple(check_integer(f"{name}[{i}]", entry) for i, entry in enumerate(listed))


def check_pair(name: str, value: object, expected: str) -> tuple[int, int]:
    """Refuses what is no pair of whole numbers."""
    found = check_integers(name, value)
    if len(found) != 2:
        raise ArgumentError(f"{name} lists {len(found)} numbers; expected {expected}")
    return found[0], found[1]


def check_interval(name: str, value: object) -> tuple[int, int]:
    """Refuses what is no pair of timesteps."""
    return check_pair(name, value, "two timesteps, (low, high)")


def _listed(value: object) -> list[Any] | None:
    """The entries of a list, tuple, range or array of one dimension; None for anything else."""
    if isinstance(value, (list, tuple, range)):
        return list(value)
    return list(value) if isinstance(value, np.ndarray) and value.ndim == 1 else None
