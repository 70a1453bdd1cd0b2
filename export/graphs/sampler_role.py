"""The whole sampler as a graph of a bundle: its signature, and how near its ONNX file is to the loop in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine import kernels
from engine.bundle.graphs import SAMPLER
from engine.bundle.inputs import InputSpec
from engine.bundle.pipeline import PipelineSpec, X
from engine.bundle.tensors import BATCH, STEPS, TensorSpec
from engine.bundle.whole import GUIDE_MODE, NETS
from engine.commands import install_extra
from engine.errors import ExportError, first_line
from engine.kernels import ROW_FIELDS
from engine.solver.feeds import nets_of, step_feeds
from engine.solver.guides import BY_NORM, CONSTANT, MODES
from engine.solver.levels import LEARNED_RANGE
from engine.solver.regulariser import AFTER, BEFORE
from engine.solver.schedule import Schedule
from engine.solver.table import METHODS, build_step_table
from export.graphs.parity import LOADERS, native_failures, relative_error
from export.graphs.reference import WholeSampler
from export.graphs.roles import FREE, Inputs, Role, tensor

# Largest relative error of x against the float32 loop in torch, for chains that start at T / 2: nearer to T, x0 divides
# every rounding error by sqrt(alpha_bar) and clipping makes single pixels jump (tests/integration measures whole chains).
BOUNDS = {"f32": 1e-4, "fp16": 2e-2}
# One step, guidance, noise in every row, and a method for each kind of history.
CHAINS: tuple[dict[str, Any], ...] = (
    {"batch": 1, "steps": 1},
    {"batch": 2, "steps": 2, "guidance": 0.5},
    {"batch": 1, "steps": 3, "eta": 1.0},
    {"batch": 2, "steps": 4, "method": "unipc_2"},
    {"batch": 1, "steps": 5, "method": "plms"},
)
LEARNED: dict[str, Any] = {"batch": 2, "steps": 3, "method": "ddpm", "variance": LEARNED_RANGE}  # for networks that have it
# Rows with a guide and one without. Not by entropy: that of a classifier that is sure of noise has no digit to compare.
GUIDED: tuple[dict[str, Any], ...] = (
    {"batch": 1, "steps": 3, "method": "ddim_clipped", "guide_scale": 0.25, "mode": BY_NORM, "unguided": 1},
    {"batch": 2, "steps": 2, "method": "ddpm", "guide_scale": 0.5, "mode": CONSTANT, "unguided": 0},
)
REGULARISED: tuple[dict[str, Any], ...] = (
    {"batch": 1, "steps": 3, "method": "ddpm", "regularise": AFTER},
    {"batch": 2, "steps": 2, "eta": 1.0, "regularise": BEFORE, "guidance": 0.5},
)
BATCHES = tuple(chain["batch"] for chain in CHAINS)


def sampler_role(
    inputs: Sequence[InputSpec], pipeline: PipelineSpec, roles: Mapping[str, Role], precision: str = "f32"
) -> Role:
    """The sampler over the graphs of a pipeline; `precision` is that of the file to be composed."""
    state = (BATCH, *pipeline.state.shape)
    channels, height, width = pipeline.image_shape
    takes = (
        *(TensorSpec(spec.name, spec.dtype, spec.shape, spec.range) for spec in inputs),
        tensor("x_T", state),
        tensor("timesteps", ("rows",), "int64", _times(pipeline, roles)),
        tensor("coefficients", ("rows", len(ROW_FIELDS))),
        tensor("weights", ("rows", "lanes")),
        tensor("start", (3,)),
        tensor("noise", ("noise_steps", *state)),
        *((tensor(GUIDE_MODE, (1,), "int64", (0.0, len(MODES) - 1.0)),) if pipeline.guides else ()),
        *((tensor(NETS, ("rows",), "int64", (0.0, 1.0)),) if pipeline.regulariser is not None else ()),
    )
    start = pipeline.state.start
    gives = (
        tensor("images", (BATCH, height, width, channels), "uint8", (0.0, 255.0)),
        tensor("x", state),
        *((tensor(start, state),) if start is not None else ()),
    )
    return Role(SAMPLER, WholeSampler(pipeline, roles).eval(), takes, gives, precision)


def _times(pipeline: PipelineSpec, roles: Mapping[str, Role]) -> tuple[float, float] | None:
    """The range of the timesteps, which is the table's."""
    call = pipeline.rows
    return next(spec.range for spec in roles[call.graph].inputs if call.inputs[spec.name] == "timesteps")


def measure_sampler(
    role: Role, model: bytes, runtimes: Sequence[str], schedule: Schedule, prediction: str = "eps"
) -> dict[str, float]:
    """The largest relative error of each runtime; ExportError when one exceeds its bound, or when bytes are not x's."""
    whole = role.module
    assert isinstance(whole, WholeSampler)
    cases = _examples(role, whole.pipeline, schedule, prediction)
    with torch.inference_mode():
        expected = [[value.numpy() for value in whole(**case)] for case in cases]
    bound, errors = BOUNDS[role.precision], {}
    for name in runtimes:
        try:
            run = LOADERS[name](model)
            found = [run({key: value.numpy() for key, value in case.items()}) for case in cases]
        except native_failures() as error:
            raise ExportError(
                f"graph {role.name}: found that {name} cannot run it ({first_line(error)}), "
                f"expected it to run; install the versions of the extra export: {install_extra('export')}"
            ) from error
        names = [spec.name for spec in role.outputs[1:]]  # images are x, rounded
        pairs = [(f[key], e[i]) for f, e in zip(found, expected, strict=True) for i, key in enumerate(names)]
        errors[name] = max(relative_error(a, b) for a, b in pairs)
        same_bytes = all(_same_bytes(whole, f, case) for f, case in zip(found, cases, strict=True))
        if not errors[name] <= bound or not same_bytes:
            raise ExportError(
                f"graph {role.name}: found a relative error of {errors[name]:.3g} in {name} against torch"
                f"{'' if same_bytes else ', and images that are not its x'}, expected at most {bound:g}; report this "
                f"message with the versions of torch, onnx and {name}"
            )
    return errors


def _same_bytes(whole: WholeSampler, found: Mapping[str, np.ndarray], case: Inputs) -> bool:
    """Whether the images are the bytes of x, or within one level of what torch decodes x to."""
    pipeline = whole.pipeline
    if pipeline.image == X:
        return np.array_equal(found["images"], kernels.to_uint8(found["x"]))
    inputs = {spec.name: case[spec.name] for spec in _declared(whole, case)}
    with torch.inference_mode():
        image = whole.images(torch.from_numpy(found["x"]), inputs)
    levels = kernels.to_uint8(np.ascontiguousarray(image.numpy())).astype(np.int16)
    return bool(np.abs(levels - found["images"]).max() <= 1)


def _declared(whole: WholeSampler, case: Inputs) -> list[TensorSpec]:
    own = ("x_T", "timesteps", "coefficients", "weights", "start", "noise", GUIDE_MODE, NETS)
    return [tensor(name, tuple(value.shape)) for name, value in case.items() if name not in own]


def _examples(role: Role, pipeline: PipelineSpec, schedule: Schedule, prediction: str) -> list[Inputs]:
    """CHAINS from the middle of the schedule, with guidance where the pipeline has it."""
    starts = pipeline.state.start is not None
    cases = []
    second = pipeline.regulariser
    chains = (*CHAINS, *([LEARNED] if pipeline.learns_variance else []), *(GUIDED if pipeline.guides else ()))
    chains = (*chains, *(() if second is None else REGULARISED))
    for seed, chain in enumerate(chains):
        options = dict(chain)
        if prediction not in METHODS[chain.get("method", "ddim")].predictions:
            continue
        batch, steps = options.pop("batch"), options.pop("steps")
        mode, unguided = options.pop("mode", CONSTANT), options.pop("unguided", None)
        if not pipeline.guided:
            options.pop("guidance", None)
        table = build_step_table(
            schedule,
            prediction=prediction,
            centred=pipeline.state.centre is not None,
            steps=min(steps, schedule.T // 2),
            t_start=schedule.T // 2 if starts else None,
            spacing="linspace" if starts else "truncated",
            clip=pipeline.state.clip,
            regulariser=None if second is None else second.prediction,
            **options,
        )
        arrays = step_feeds(table) | ({GUIDE_MODE: np.array([MODES.index(mode)])} if pipeline.guides else {})
        arrays |= {} if second is None else {NETS: nets_of(table)}
        if unguided is not None:
            arrays["coefficients"][unguided, ROW_FIELDS.index("k_g")] = 0.0
        sizes = {BATCH: batch, STEPS: len(table), "noise_steps": len(table.rows) if table.stochastic else 1}
        rng = np.random.default_rng(seed)
        for spec in role.inputs:
            if spec.name not in arrays:
                arrays[spec.name] = _draw(spec, sizes, rng)
        cases.append({spec.name: torch.from_numpy(arrays[spec.name]) for spec in role.inputs})
    return cases


def _draw(spec: TensorSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Unit normals, or values within a range."""
    shape = [sizes.get(d, FREE) if isinstance(d, str) else d for d in spec.shape]
    if spec.dtype == "int64":
        low, high = spec.range or (0.0, 0.0)
        return rng.integers(int(low), int(high) + 1, shape)
    if spec.range is None:
        return rng.standard_normal(shape, np.float32)
    return rng.uniform(*spec.range, shape).astype(np.float32)
