"""Parity: how far each runtime is from torch, for every graph at several batch sizes; out of bounds ends the build.

A graph that runs in any size is checked in its own and, in ONNX Runtime, which loads it sooner than others, in another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from engine.backends import onnxruntime, openvino
from engine.bundle.onnx_file import Onnx
from engine.commands import install_extra
from engine.errors import ExportError, first_line
from engine.threads import default_threads
from export.graphs.roles import Example, FreeSize, Inputs, Role, example

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Load(Protocol):
    """Loads a graph into a runtime; of one whose file leaves its size free, in that of its role."""

    def __call__(self, model: Onnx | bytes, role: Role | None = None, free: FreeSize | None = None) -> Run: ...


BATCHES = (1, 2, 5)
STEPS = (1, 3, 10)
# Weights of a graph whose passes, each in torch and in every runtime, are most of what a build takes: it is checked at the
# first two batch sizes alone.
LARGE = 1 << 24
ANY_SIZE = "onnxruntime"  # what runs a loaded graph in any size
# Largest |difference| over largest |reference|, in float32. Small networks differ by 1e-6, an encoder of 512 x 512 pixels,
# whose norms sum a million numbers in an order of the processor's own, by 1.3e-5. A weight in half is past 1e-4.
BOUNDS = {"onnxruntime": 5e-5, "openvino": 5e-5}


def load_onnxruntime(model: Onnx | bytes, role: Role | None = None, free: FreeSize | None = None) -> Run:
    """The graph as the onnxruntime backend will run it."""
    return _run_session(model, {} if free is None else free.sizes())


def _run_session(model: Onnx | bytes, sizes: Mapping[str, int]) -> Run:
    session = onnxruntime.open_session(model, default_threads(), sizes=sizes)
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def load_openvino(model: Onnx | bytes, role: Role | None = None, free: FreeSize | None = None) -> Run:
    """The graph as the openvino backend will run it in f32."""
    compiled = openvino.compile_model(model, "f32", default_threads(), () if role is None or free is None else role.inputs)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = compiled(inputs)
        return {name: np.array(result[name]) for name in names}

    return run


LOADERS: dict[str, Load] = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}


def native_failures() -> tuple[type[Exception], ...]:
    """Whatever the runtimes raise."""
    return (*openvino.NATIVE_FAILURES, *onnxruntime.native_failures())


def batches_of(role: Role) -> tuple[int, ...]:
    """The batch sizes that a graph is checked at."""
    weights = sum(weight.numel() for weight in role.module.parameters())
    return BATCHES[:2] if weights > LARGE else BATCHES


def cases_of(role: Role, examples: Example) -> Iterator[Inputs]:
    """Inputs of each of these batch sizes, the same ones for every runtime."""
    for seed, (batch, steps) in enumerate(zip(batches_of(role), STEPS, strict=False)):
        yield examples(role, batch, steps, seed)


def measure(
    role: Role,
    model: Onnx | bytes,
    runtimes: Sequence[str],
    examples: Example = example,
    bound: float | None = None,
    free: FreeSize | None = None,
) -> dict[str, float]:
    """The largest relative error of each runtime over all inputs; ExportError when one exceeds its bound.

    `role` is the float32 reference; `bound` (None: that of float32) is for a `model` in another precision; `free`: of a
    graph whose file leaves its size free.
    """
    cases = list(cases_of(role, examples))
    expected = [_reference(role, case) for case in cases]
    found = {
        name: _measure_one(role, partial(LOADERS[name], model, role, free), name, cases, expected, bound or BOUNDS[name])
        for name in runtimes
    }
    if free is not None and ANY_SIZE in found:
        other = free.at(role, free.own[0] + free.multiple, free.own[1] + 2 * free.multiple)
        case = examples(other, 1, 1, 0)
        load, wanted = partial(_run_session, model, {}), [_reference(other, case)]
        error = _measure_one(other, load, ANY_SIZE, [case], wanted, bound or BOUNDS[ANY_SIZE])
        found[ANY_SIZE] = _worse(found[ANY_SIZE], error)
    return found


def _reference(role: Role, case: Inputs) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in role(case).items()}


def _measure_one(
    role: Role, load: Callable[[], Run], name: str, cases: list[Inputs], expected: list[dict[str, np.ndarray]], bound: float
) -> float:
    try:
        run = load()
        found = [run({key: value.numpy() for key, value in case.items()}) for case in cases]
    except native_failures() as error:
        raise ExportError(
            f"graph {role.name}: found that {name} cannot run it ({first_line(error)}), expected "
            f"it to run; install the versions of the extra export: {install_extra('export')}"
        ) from error
    least = role.scales
    errors = [relative_error(f[key], e[key], least.get(key, 0.0)) for f, e in zip(found, expected, strict=True) for key in e]
    worst = functools.reduce(_worse, errors)
    if not worst <= bound:
        half = "keep layers with --keep-float32" if bound > BOUNDS[name] else "report this message"
        raise ExportError(
            f"graph {role.name}: found a relative error of {worst:.3g} in {name} against torch, expected at most "
            f"{bound:g} against float32; {half} with the versions of torch, onnx and {name}"
        )
    return worst


def _worse(a: float, b: float) -> float:
    """The larger error; NaN is the largest of all."""
    return a if a != a or a >= b else b


def relative_error(found: np.ndarray, expected: np.ndarray, least: float = 0.0) -> float:
    """max |found - expected| / max(|expected|, least); infinite when the shapes differ, 0 when both are all zero."""
    if found.shape != expected.shape:
        return float("inf")
    difference, scale = float(np.abs(found - expected).max()), max(float(np.abs(expected).max()), least)
    return difference if difference == 0 or scale == 0 else difference / scale
