"""A regulariser for a model: a second, unconditional model of the same state, whose step runs in rows of its own.

What a sampler makes of it is in engine/solver/regulariser.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.bundle.pipeline import ROWS, TIMESTEPS, CallSpec, X
from engine.errors import CheckpointError, ExportError
from engine.solver.regulariser import OFF
from engine.solver.schedule import F64
from engine.solver.table import build_step_table
from export.families.base import Model
from export.read.schedule import describe

NAME, TABLE = "regulariser", "regulariser_table"
# Schedules that were stored in other ways differ in their last digits; networks tell levels apart no better than this.
SAME_LEVELS = 1e-4


def with_regulariser(
    model: Model, second: Model, path: Path, *, mode: str = OFF, interval: tuple[int, int] | None = None
) -> Model:
    """The model with a second one as its regulariser.

    path: the second one's file, for messages. mode, interval: what the bundle records, as `Sampler.sample` takes them.
    CheckpointError for a second model that is fed something, or is of another state or schedule; ExportError for a model
    whose state lies around a centre; ArgumentError for a mode that its recorded method does not take.
    """
    _check_fits(model, second, path)
    wiring = second.wiring
    pipeline = {"rows": _call(wiring.rows, TABLE), "step": _call(wiring.step, NAME), "prediction": second.prediction}
    table, step = second.roles[wiring.rows.graph], second.roles[wiring.step.graph]
    # int8 is calibrated on the chains of the model's own network.
    roles = {
        TABLE: dataclasses.replace(table, name=TABLE),
        NAME: dataclasses.replace(step, name=NAME, compute={**step.compute, "int8": "bf16"}),
    }
    made = dataclasses.replace(
        model,
        roles={**model.roles, **roles},
        pipeline={**model.pipeline, "regulariser": pipeline},
        regularise={"mode": mode, "interval": None if interval is None else list(interval)},
        step_bound=max(model.step_bound, second.step_bound),
        notes=[*model.notes, *(f"the regulariser: {note}" for note in second.notes)],
    )
    build_step_table(  # which refuses what cannot be sampled
        model.schedule.schedule(),
        prediction=model.prediction,
        clip=made.wiring.state.clip,
        variance=model.variance,
        regularise=mode,
        regularise_interval=interval,
        regulariser=second.prediction,
        **model.defaults,
    )
    return made


def _check_fits(model: Model, second: Model, path: Path) -> None:
    """Refuse a second model that is not one of the same noised states without any condition."""
    own, its = model.wiring, second.wiring
    if own.state.centre is not None:
        raise ExportError(
            f"--regulariser: found a model whose state lies around {own.state.centre!r}, expected one without a centre: an "
            "unconditional network is not told it; leave --regulariser out"
        )
    fed = [*its.rows.inputs.values(), *its.step.inputs.values()]
    if conditions := [name for name in dict.fromkeys(fed) if name not in (X, ROWS, TIMESTEPS)]:
        raise CheckpointError(
            f"{path}: found a model that is fed {', '.join(conditions)}, expected an unconditional one for --regulariser, "
            "which takes the noised image and the timestep alone; give another file"
        )
    if its.state.centre is not None or its.state.shape != own.state.shape:
        found, expected = (" x ".join(map(str, state.shape)) for state in (its.state, own.state))
        raise CheckpointError(
            f"{path}: found a model of states of {found}, expected {expected}, as the model's own; give another "
            "--regulariser"
        )
    if its.state.clip != own.state.clip:
        found, expected = (_limit(state.clip) for state in (its.state, own.state))
        raise CheckpointError(
            f"{path}: found a model whose clean state has {found}, expected {expected}, as the model's own: the states are "
            "of different kinds; give another --regulariser"
        )
    if not _alike(second.schedule.schedule().alpha_bar, model.schedule.schedule().alpha_bar):
        raise CheckpointError(
            f"{path}: found a model of the schedule {describe(second.schedule)}, expected {describe(model.schedule)}, as "
            "the model's own: a timestep is one level for both; give another --regulariser"
        )


def _alike(alpha_bar: F64, other: F64) -> bool:
    """Whether two schedules are of the same levels: both the signal's and the noise's."""
    if len(alpha_bar) != len(other):
        return False
    signal = np.allclose(alpha_bar, other, rtol=SAME_LEVELS, atol=0.0)
    return signal and np.allclose(1.0 - alpha_bar, 1.0 - other, rtol=SAME_LEVELS, atol=0.0)


def _limit(clip: float | None) -> str:
    return "no limit" if clip is None else f"the limit {clip:g}"


def _call(call: CallSpec, graph: str) -> Mapping[str, Any]:
    return {"graph": graph, "inputs": dict(call.inputs), "outputs": dict(call.outputs)}
