"""How far is a program from torch in float32? Measured through the backend that will run it, before it enters a bundle."""

from __future__ import annotations

import numpy as np
import torch

from engine.backends.native import backend as native
from engine.backends.native.weights import weights_of
from engine.bundle.manifest import GraphSpec, Parity, TensorSpec
from engine.errors import ExportError
from export.graphs.parity import BATCHES, STEPS
from export.graphs.roles import Role, TimestepTable, example
from export.native.program import Assembled
from export.native.trajectory import States

# Relative error in the L2 norm over all outputs, the worst of all cases. bf16 has 8 bits: a network of dozens of layers is
# off by about 1 %. The table is in float32 and enters every step. An int8 denoiser that was given a budget is held to that;
# this bound is for budget "all", above which images visibly change.
BOUNDS = {"timestep_table": 1e-5, "vae_encoder": 0.03, "vae_decoder": 0.03, "denoiser": 0.015}
INT8_BOUND = 0.1


def measure_program(
    role: Role, assembled: Assembled, precision: str, table: TimestepTable | None, bound: float
) -> dict[str, object]:
    """What the manifest records: the error on random inputs of several batch sizes; ExportError above `bound`."""
    errors = []
    graph = open_assembled(role, assembled, precision)
    with graph:
        for seed, (batch, steps) in enumerate(zip(BATCHES, STEPS, strict=True)):
            inputs = example(role, batch, steps, seed, table)
            with torch.inference_mode():
                result = role.module(**inputs)
            found = graph(**{name: value.contiguous().numpy() for name, value in inputs.items()})
            for tensor, value in zip(role.outputs, result if isinstance(result, tuple) else (result,), strict=True):
                errors.append(relative_error(found[tensor.name], value.numpy()))
        isa = graph.isa
    worst = float(np.max(errors))  # NaN is the largest of all
    if not worst <= bound:
        raise ExportError(
            f"native {precision} {role.name}: found a relative error of {worst:.3g} against torch on {isa}, expected at "
            f"most {bound:g}; keep more layers out of int8 with --int8-budget, or leave native out of --backends"
        )
    return {
        "reference": f"torch {torch.__version__} float32",
        "relative_error": float(f"{worst:.4g}"),
        "norm": "L2",
        "bound": float(f"{bound:.4g}"),
        "batches": list(BATCHES),
        "instruction_set": isa,
    }


def error_on_states(role: Role, assembled: Assembled, precision: str, states: States, exact: torch.Tensor) -> float:
    """The error of a denoiser on calibration states, whose exact eps is known."""
    found = []
    with open_assembled(role, assembled, precision) as graph:
        for part in states.batches(1):
            inputs = {"x": part.x, "cond": part.cond, "row": part.row}
            arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items() if value is not None}
            found.append(graph(**arrays)["eps"].copy())
    return relative_error(np.concatenate(found), exact.numpy())


def open_assembled(role: Role, assembled: Assembled, precision: str) -> native.NativeGraph:
    """A graph over files that are not written yet."""
    where = f"native {precision} {role.name}"
    return native.open_graph(
        assembled.program, weights_of(assembled.weights, where), _spec(role), role.name, precision, None, where
    )


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """|found - exact| / |exact| in the L2 norm, in float64."""
    difference = float(np.linalg.norm(found.astype(np.float64) - exact))
    scale = float(np.linalg.norm(exact.astype(np.float64)))
    return difference if difference == 0 or scale == 0 else difference / scale


def _spec(role: Role) -> GraphSpec:
    """The signature that the manifest will have; file and parity are those of the ONNX graph, which nobody reads here."""
    inputs, outputs = (
        tuple(TensorSpec(t.name, t.dtype, t.shape, t.range) for t in side) for side in (role.inputs, role.outputs)
    )
    parity = Parity("", 0.0, (), {})
    return GraphSpec("", 0, "", precision=role.precision, opset=0, inputs=inputs, outputs=outputs, parity=parity)
