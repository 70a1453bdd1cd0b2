"""Checks of single numbers among a caller's arguments; each returns the plain Python number or raises ArgumentError."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from engine.errors import ArgumentError


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
    if not is_integer(value):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected {expected}")
    return operator.index(value)


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
