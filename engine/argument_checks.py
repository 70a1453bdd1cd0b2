"""Checks of single numbers among a caller's arguments; each returns the plain Python number or raises ArgumentError."""

from __future__ import annotations

import math

import numpy as np

from engine.errors import ArgumentError


def check_integer(name: str, value: object) -> int:
    """Refuses what is not a whole number (True and 3.0 included)."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ArgumentError(f"{name} is {value!r}, a {type(value).__name__}; expected an integer")
    return int(value)


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
