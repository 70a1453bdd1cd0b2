"""The row formula read literally, in whatever precision its operands have: an executor for tests of the rows themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine import kernels
from engine.kernels import ROW_FIELDS
from engine.solver.levels import Columns, Levels
from engine.solver.quantized import update_quantized
from engine.solver.table import exact_rows

Network = Callable[[np.ndarray, int], Any]  # e, or e and the second output
SLOTS = ("x0", "x", "e", "c", "n", "y", "h1", "h2", "h3")


def run_rows(timesteps, rows, network: Network, x, *, c=None, noise=None, quantize=None) -> list[np.ndarray]:
    """x after every row; `noise` is one array a row, `quantize` a function of every x0. What was not written yet
    is NaN, so that reading it shows."""
    unset = np.full_like(x, np.nan)
    slots = dict.fromkeys(SLOTS, unset) | {"x": x, "c": np.zeros_like(x) if c is None else c}
    states = []
    for i, (t, row) in enumerate(zip(timesteps, rows, strict=True)):
        k = dict(zip(ROW_FIELDS, row, strict=True))
        slots["e"], v = _outputs(network(k["c_in"] * slots["x"], int(t)))
        slots["n"] = unset if noise is None else noise[i] if v is None else np.exp(k["s_n"] * v) * noise[i]
        slots["x0"] = np.clip(_sum("p", k, slots), -k["clip"], k["clip"])
        slots["x0"] = slots["x0"] if quantize is None else quantize(slots["x0"])
        y = _sum("q", k, slots) if any(k[name] for name in ROW_FIELDS if name.startswith("q_")) else slots["y"]
        following = _sum("k", k, slots)
        if k["push"]:
            slots |= {"h3": slots["h2"], "h2": slots["h1"], "h1": slots["e" if k["push"] == 1 else "x0"]}
        slots |= {"x": following, "y": y}
        states.append(following)
    return states


def run_solver(solver: Callable[[Levels], Columns], levels: Levels, network: Network, x, **options) -> list[np.ndarray]:
    """x after every row of a solver's rows in float64; the options of `run_rows`, and `clip`."""
    timesteps, rows = exact_rows(solver, levels, options.pop("clip", np.inf))
    return run_rows(timesteps, rows, network, x, **options)


def _outputs(answer: Any) -> tuple[np.ndarray, np.ndarray | None]:
    return answer if isinstance(answer, tuple) else (answer, None)


def _sum(which: str, k: dict[str, np.ndarray], slots: dict[str, np.ndarray]) -> np.ndarray:
    terms = [k[f"{which}_{name}"] * value for name, value in slots.items() if k.get(f"{which}_{name}", 0) != 0]
    return sum(terms, np.zeros_like(slots["x"]))


def run_kernels(timesteps, rows, network: Network, x, *, c=None, noise=None, quantize=None) -> list[np.ndarray]:
    """x after every row of a table by `kernels.update`, buffers handled as a chain handles them."""
    x, y, history = x.copy(), np.full_like(x, np.nan), [np.full_like(x, np.nan) for _ in range(3)]
    states = []
    for i, (t, row) in enumerate(zip(timesteps, rows, strict=True)):
        e, v = _outputs(network(row[ROW_FIELDS.index("c_in")] * x, int(t)))
        h1, h2, h3 = history
        slots = {"c": c, "y": y, "h1": h1, "h2": h2, "h3": h3, "v": v, "noise": None if noise is None else noise[i]}
        if quantize is None:
            assert kernels.update(row, x, e, **slots, out=x, y_out=y, push_out=h3)
        else:
            assert update_quantized(row, x, e, quantize, **slots, x0_out=np.empty_like(x), out=x, y_out=y, push_out=h3)
        if row[ROW_FIELDS.index("push")]:
            history = [h3, h1, h2]
        states.append(x.copy())
    return states
