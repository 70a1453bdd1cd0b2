"""How far a native program is from torch in float32, measured through the backend that will run it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from engine.backends.native.graph import NativeGraph, open_graph
from engine.backends.native.weights import weights_of
from engine.bundle.tensors import TensorSpec
from engine.errors import ExportError
from engine.threads import default_threads
from export.graphs.parity import batches_of, cases_of
from export.graphs.roles import Example, Role
from export.native.program import Assembled
from export.native.trajectory import States

# Relative error in the L2 norm over all outputs, the worst of all cases. bf16 has 8 bits: a network of dozens of layers is
# off by about 1 %; the one in the loop has a bound of its family. What is in float32 enters every step. An int8 network
# that was given a budget is held to that; this bound is for budget "all", above which images visibly change.
BOUNDS = {"f32": 1e-5, "bf16": 0.03}
INT8_BOUND = 0.1
# A gradient has gone through twice the layers. An entropy is compared with half a nat, as one near 0 cannot be with
# itself.
GUIDE_BOUND, GUIDE_SIZES = 0.04, {"entropy": 0.5}


class TooFarOff(ExportError):
    """A program's error is above its bound."""


def measure_program(
    role: Role, assembled: Assembled, precision: str, examples: Example, bound: float,
    sizes: Mapping[str, float] | None = None,
) -> dict[str, object]:  # fmt: skip
    """What the manifest records: the error on random inputs of several batch sizes; ExportError above `bound`.

    sizes: {output: what an element of it is compared with in place of the output itself}.
    """
    errors = []
    graph = open_assembled(role, assembled, precision)
    with graph:
        for inputs in cases_of(role, examples):
            found = graph(**{name: value.contiguous().numpy() for name, value in inputs.items()})
            exact = role(inputs)
            for output in role.outputs:
                low, got = _origin(output), np.asarray(found[output.name], np.float64)
                wanted = exact[output.name].numpy() - low
                size = (sizes or {}).get(output.name)
                errors.append(relative_error(got - low, wanted) if size is None else _deviation(got - low, wanted) / size)
        isa = graph.isa
    worst = float(np.max(errors))  # NaN is the largest of all
    if not worst <= bound:
        raise TooFarOff(
            f"native {precision} {role.name}: found a relative error of {worst:.3g} against torch on {isa}, expected at "
            f"most {bound:g}; keep more layers out of int8 with --int8-budget, or leave native out of --backends"
        )
    return {
        "reference": f"torch {torch.__version__} float32",
        "relative_error": float(f"{worst:.4g}"),
        "norm": "L2",
        "bound": float(f"{bound:.4g}"),
        "batches": list(batches_of(role)),
        "instruction_set": isa,
    }


def _deviation(found: np.ndarray, exact: np.ndarray) -> float:
    """The root of the mean square of what an element is off."""
    return float(np.sqrt(np.mean(np.square(found - exact))))


def _origin(output: TensorSpec) -> float:
    """What an output's size is counted from: the low end of its range. A gray image of [-1, 1] is all but 0 itself."""
    return 0.0 if output.range is None else float(output.range[0])


def error_on_states(role: Role, assembled: Assembled, precision: str, states: States, exact: torch.Tensor) -> float:
    """The error of the step's network on calibration states, whose exact answer is known."""
    found, output = [], role.outputs[0].name
    with open_assembled(role, assembled, precision) as graph:
        for part in states.batches(1):
            arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in part.inputs.items()}
            found.append(graph(**arrays)[output].copy())
    return relative_error(np.concatenate(found), exact.numpy())


def open_assembled(role: Role, assembled: Assembled, precision: str) -> NativeGraph:
    """A graph over files that are not written yet."""
    where = f"native {precision} {role.name}"
    weights = weights_of(assembled.weights, where)
    return open_graph(assembled.program, weights, role.spec(), role.name, precision, default_threads(), where)


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """|found - exact| / |exact| in the L2 norm, in float64."""
    difference = float(np.linalg.norm(found.astype(np.float64) - exact))
    scale = float(np.linalg.norm(exact.astype(np.float64)))
    return difference if difference == 0 or scale == 0 else difference / scale

