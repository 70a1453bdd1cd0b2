"""The regulariser in the whole-sampler graph: an If in the loop, so that each row runs one of the two networks.

    e, v = the regulariser's for (x, its row) where `nets` is 1 there; else the own network's, over its lanes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import TensorProto, helper

from engine.bundle.pipeline import ROWS, TIMESTEPS, VARIANCE, E, PipelineSpec, X
from engine.bundle.tensors import BATCH
from engine.bundle.whole import NETS
from engine.solver.regulariser import REGULARISER
from export.graphs.sheet import Sheet

TABLE = "regulariser/table"
Answer = tuple[str, str | None]  # e, and v of pipelines that have it


def regulariser_table(main: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto]) -> None:
    """In the main graph, before the loop: its own table of timesteps."""
    found = pipeline.regulariser
    if found is not None and found.rows is not None:
        call = found.rows
        taken = dict.fromkeys(call.inputs, TIMESTEPS)
        main.inline(parts[call.graph], call.graph, "regulariser/rows", {**taken, **dict.fromkeys(call.outputs, TABLE)})


def either_network(
    body: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto], x: str, own: Callable[[Sheet, str], Answer]
) -> Answer:
    """What the network of a row gives; own: the pipeline's own network, on a sheet, for x."""
    net = body.op("Gather", NETS, "loop/row", out="nets/own")
    is_second = body.op("Equal", net, body.constant("nets/regulariser", REGULARISER), out="nets/is_regulariser")
    first, other = Sheet("loop/own/"), Sheet("loop/regulariser/")
    branches = {
        "then_branch": _branch(other, _second(other, pipeline, parts, x), pipeline),
        "else_branch": _branch(first, own(first, x), pipeline),
    }
    given = ["nets/given_e", *(["nets/given_v"] if pipeline.learns_variance else [])]
    body.nodes.append(helper.make_node("If", [is_second], given, name="nets:If", **branches))
    # In the shape that they have: without this OpenVINO 2026.4 reads them before they are there, in a first run's first row.
    shape = body.op("Shape", "loop/x", out="nets/shape")
    e, *v = (body.op("Expand", name, shape, out=name.replace("given_", "")) for name in given)
    return e, v[0] if v else None


def _second(sheet: Sheet, pipeline: PipelineSpec, parts: Mapping[str, onnx.ModelProto], x: str) -> Answer:
    spec = pipeline.regulariser
    assert spec is not None, "called for pipelines that have one"
    own = {X: x}
    if spec.rows is not None:
        row = sheet.op("Unsqueeze", "loop/row", sheet.axes(0), out="regulariser/row_number")
        own[ROWS] = sheet.op("Gather", TABLE, row, out="regulariser/row")
    given = {E: "regulariser/e", VARIANCE: "regulariser/v"}
    names = {port: own[name] for port, name in spec.step.inputs.items()}
    names |= {port: given[name] for port, name in spec.step.outputs.items()}
    sheet.inline(parts[spec.step.graph], spec.step.graph, "regulariser/step", names)
    if not pipeline.learns_variance:
        return given[E], None
    # Rows of a network that has learned none read none.
    v = given[VARIANCE] if spec.learns_variance else sheet.op("Identity", "kept/zero", out="regulariser/no_v")
    return given[E], v


def _branch(sheet: Sheet, answer: Answer, pipeline: PipelineSpec) -> onnx.GraphProto:
    state: list[int | str] = [BATCH, *pipeline.state.shape]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in answer if name is not None]
    return helper.make_graph(sheet.nodes, "network", [], outputs, sheet.constants)
