"""One call of the network: seeded inputs that every contestant is given, and what the engine's graphs make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine import backends
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import ROWS, TIMESTEPS, Value, X
from engine.bundle.reader import Bundle

F32 = npt.NDArray[np.float32]
Values = dict[str, npt.NDArray[Any]]
CHECKED_TIMESTEPS = (0.999, 0.5, 0.0)  # of T, where one network call is compared


def check_inputs(manifest: Manifest, n: int) -> list[tuple[F32, Values, int]]:
    """x, the values that the network takes beside it, and a timestep, for each call that is compared."""
    rng = np.random.default_rng(0)
    pipeline = manifest.pipeline
    names = [name for call in (pipeline.rows, pipeline.step) for name in call.inputs.values()]
    taken = [name for name in dict.fromkeys(names) if name not in (X, ROWS, TIMESTEPS)]
    inputs = []
    for part in CHECKED_TIMESTEPS:
        x = rng.standard_normal((n, *pipeline.state.shape)).astype(np.float32)
        values = {name: _example(pipeline.values[name], n, rng) for name in taken}
        inputs.append((x, values, min(manifest.schedule.T - 1, int(part * manifest.schedule.T))))
    return inputs


def _example(value: Value, n: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Normal numbers; images lie in [-1, 1]."""
    shape = [n, *(1 if isinstance(size, str) else size for size in value.shape[1:])]
    if value.dtype != "float32":
        return np.zeros(shape, value.dtype)
    array = rng.standard_normal(shape).astype(np.float32)
    return np.tanh(array) if array.ndim == 4 else array


def step_arrays(
    bundle: Bundle, x: F32, values: Values, timestep: int, *, backend: str, precision: str, threads: int
) -> Values:
    """What the step's graph is fed for one call, by its own names; the row comes from the bundle's table."""
    pipeline = bundle.manifest.pipeline
    there: Values = {**values, TIMESTEPS: np.array([timestep], np.int64)}
    with backends.load(bundle, pipeline.rows.graph, backend=backend, precision=precision, threads=threads) as table:
        (rows,) = table(**{port: there[name] for port, name in pipeline.rows.inputs.items()}).values()
        there |= {X: x, ROWS: np.array(rows[0] if pipeline.per_sample_rows else rows)}
    return {port: there[name] for port, name in pipeline.step.inputs.items()}
