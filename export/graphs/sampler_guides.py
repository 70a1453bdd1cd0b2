"""Guides in the whole-sampler graph: an If for each in the loop, so that a row without one pays for none.

    g = what the guide of the row's timestep gives for (x, its row, values), scaled as engine/solver/guides.py has it; else 0

Every If holds its guide's weights, and the next If in its other branch: two side by side, added up, come out wrong in
OpenVINO 2026.4. TensorRT for RTX 1.7 builds no plan of several in any of these forms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from engine.bundle.guides import ENTROPY, G, GuideSpec
from engine.bundle.pipeline import ROWS, TIMESTEPS, PipelineSpec, X
from engine.bundle.tensors import BATCH
from engine.bundle.whole import GUIDE_MODE
from engine.solver.guides import BY_ENTROPY, BY_NORM, LEAST_ENTROPY, LEAST_NORM, MODES
from export.graphs.sheet import Sheet

NONE = "kept/zero"  # of the state's shape


def guide_tables(main: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto]) -> None:
    """In the main graph, before the loop: the guides' own tables of timesteps, and of several guides which one a row has."""
    for number, guide in enumerate(pipeline.guides):
        if guide.rows is not None:
            made = dict.fromkeys(guide.rows.outputs, _table(number))
            main.inline(parts[guide.rows.graph], guide.rows.graph, f"guide{number}/rows", {**guide.rows.inputs, **made})
    if len(pipeline.guides) < 2:
        return
    # The first that serves a timestep, as they are listed from the clean end without a gap: so many end below it.
    ends = main.constant("guides/ends", [[guide.timesteps[1]] for guide in pipeline.guides[:-1]])
    above = main.op("Greater", TIMESTEPS, ends, out="guides/above")
    counted = main.op("Cast", above, out="guides/counted", to=TensorProto.INT64)
    main.op("ReduceSum", counted, main.axes(0), out="guides/which", keepdims=0)


def guide_gradient(
    body: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto], k_g: str, mean: str, spread: str | None
) -> str:
    """The operand g of a row, by name.

    k_g: its coefficient [1]; mean: the row's x' without noise and gradient; spread: exp(s_n v), of networks that have v.
    """
    zero = body.constant("number/0", 0, np.float32)
    takes = body.op("Not", body.op("Equal", k_g, zero, out="guides/none"), out="guides/any")
    guided = body.op("Squeeze", takes, out="guides/guided")
    conditions = [guided]
    if len(pipeline.guides) > 1:
        body.op("Gather", "guides/which", "loop/row", out="guides/index")
        numbers = [body.constant(f"guides/{number}", number) for number in range(len(pipeline.guides))]
        of = [body.op("Equal", "guides/index", number, out=f"{number}/is_own") for number in numbers]
        conditions = [body.op("And", guided, own, out=f"{own}/runs") for own in of]
    sheet = Sheet()
    gives = sheet.op("Identity", NONE, out="guides/zero")
    for number, guide in reversed(list(enumerate(pipeline.guides))):
        runs, outer = Sheet(f"guide{number}/"), body if number == 0 else Sheet()
        scaled = _scaled(runs, number, guide, parts, mean, spread)
        branches = {"then_branch": _branch(runs, scaled, pipeline), "else_branch": _branch(sheet, gives, pipeline)}
        gives, sheet = outer.op("If", conditions[number], out=f"guide{number}/gradient", **branches), outer
    return gives


def _table(number: int) -> str:
    return f"guide{number}/table"


def _scaled(
    branch: Sheet, number: int, guide: GuideSpec, parts: Mapping[str, onnx.ModelProto], mean: str, spread: str | None
) -> str:
    """One guide on x, and its gradient by the mode."""
    at, step = f"guide{number}/scaled", guide.step
    own = {X: "loop/x"}
    if guide.rows is not None:
        row = branch.op("Unsqueeze", "loop/row", branch.axes(0), out=f"{at}/row_number")
        own[ROWS] = branch.op("Gather", _table(number), row, out=f"{at}/row")
    given = {name: f"{at}/{name}" for name in step.outputs.values()}
    names = {port: own.get(name, name) for port, name in step.inputs.items()}
    names |= {port: given[name] for port, name in step.outputs.items()}
    branch.inline(parts[step.graph], step.graph, f"guide{number}/step", names)
    g = given[G]
    if spread is not None:
        g = branch.op("Mul", branch.op("Mul", spread, spread, out=f"{at}/variance"), g, out=f"{at}/by_variance")
    by_entropy = _by_entropy(branch, at, given.get(ENTROPY), guide.classes)
    factors = {BY_ENTROPY: by_entropy, BY_NORM: _by_norm(branch, at, g, mean)}
    factor = branch.constant("number/1", 1, np.float32)
    for mode, by in factors.items():
        asked = branch.op("Equal", GUIDE_MODE, branch.constant(f"mode/{mode}", MODES.index(mode)), out=f"{at}/is_{mode}")
        factor = branch.op("Where", asked, by, factor, out=f"{at}/factor_{mode}")
    return branch.op("Mul", g, factor, out=f"{at}/g_scaled")


def _by_entropy(branch: Sheet, at: str, entropy: str | None, classes: int) -> str:
    """log K / max(H, 1e-6), [N, 1, 1, 1]; NaN where a guide gives no entropy, whose bundle is refused this mode."""
    if entropy is None:
        return branch.constant("entropy/none", np.nan, np.float32)
    least = branch.constant("entropy/least", LEAST_ENTROPY, np.float32)
    limited = branch.op("Max", entropy, least, out=f"{at}/entropy_limited")
    column = branch.op("Reshape", limited, branch.axes(-1, 1, 1, 1), out=f"{at}/entropy_column")
    return branch.op("Div", branch.constant("entropy/most", math.log(classes), np.float32), column, out=f"{at}/by_entropy")


def _by_norm(branch: Sheet, at: str, g: str, mean: str) -> str:
    """|m| / max(|g|, 1e-30), [N, 1, 1, 1]."""
    least = branch.constant("norm/least", LEAST_NORM, np.float32)
    lengths = [_norm(branch, f"{at}/norm_{name}", value, least) for name, value in (("mean", mean), ("g", g))]
    return branch.op("Div", lengths[0], branch.op("Max", lengths[1], least, out=f"{at}/norm_limited"), out=f"{at}/by_norm")


def _norm(branch: Sheet, at: str, x: str, least: str) -> str:
    """The length of each sample: relative to its largest element, as squares of a gradient leave float32's range."""
    sample = branch.axes(1, 2, 3)
    largest = branch.op("ReduceMax", branch.op("Abs", x, out=f"{at}_abs"), sample, out=f"{at}_max", keepdims=1)
    unit = branch.op("Max", largest, least, out=f"{at}_unit")
    relative = branch.op("Div", x, unit, out=f"{at}_relative")
    squares = branch.op("Mul", relative, relative, out=f"{at}_squares")
    total = branch.op("ReduceSum", squares, sample, out=f"{at}_total", keepdims=1)
    return branch.op("Mul", branch.op("Sqrt", total, out=f"{at}_root"), unit, out=f"{at}_length")


def _branch(sheet: Sheet, gives: str, pipeline: PipelineSpec) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(gives, TensorProto.FLOAT, [BATCH, *pipeline.state.shape])
    return helper.make_graph(sheet.nodes, "guide", [], [output], sheet.constants)
