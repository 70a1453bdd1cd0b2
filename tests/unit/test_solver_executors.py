"""Every solver's tables through `kernels.update` as a chain calls it, against the row formula read literally."""

from __future__ import annotations

import numpy as np
import pytest

from engine.solver.schedule import Schedule
from engine.solver.table import METHODS, build_step_table
from tests.solver_rows import run_kernels, run_rows

SCHEDULE = Schedule.from_recipe("scaled_linear", 1000, start=0.0015, end=0.0195)
SHAPE = (2, 3, 5, 7)
RNG = np.random.default_rng(3)
X, CENTRE = (RNG.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
NOISE = RNG.standard_normal((12, *SHAPE)).astype(np.float32)


def network(x: np.ndarray, t: int) -> np.ndarray:
    return (np.tanh(x + np.float32(t / 300)) + np.float32(0.2) * x).astype(np.float32)


def halved(x0: np.ndarray) -> np.ndarray:
    """Another x0, and a smooth function of it: between codes a float32 and a float64 chain could part."""
    return np.asarray(0.5 * np.sin(x0), np.float32)


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize(
    ("centred", "eta", "quantized"), [(False, 0.0, False), (True, 0.0, False), (True, 0.7, False), (True, 0.7, True)]
)
@pytest.mark.parametrize("method", METHODS)
def test_kernels_run_every_solvers_rows(method, centred, eta, quantized, clip, steps):
    if "eta" not in METHODS[method].takes:
        eta = 0.0
    for prediction in METHODS[method].predictions:
        options = {"method": method, "prediction": prediction, "centred": centred, "eta": eta, "clip": clip}
        table = build_step_table(SCHEDULE, steps=steps, spacing="trailing", **options)
        operands = {"c": CENTRE, "noise": NOISE, "quantize": halved if quantized else None}
        found = run_kernels(table.timesteps, table.rows, network, X, **operands)
        expected = run_rows(table.timesteps, table.rows, network, X, **operands)
        assert len(found) == len(table)
        for one, other in zip(found, expected, strict=True):
            scale = max(1.0, float(np.abs(other).max()))
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-4 * scale)
