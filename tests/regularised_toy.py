"""A toy bundle with a regulariser: small graphs made without torch, and a chain of both networks written out in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engine.bundle.writer import write_bundle
from tests import toy

SIZE = 8
F64 = NDArray[np.float64]


def networks(
    prediction: str, learned: Sequence[str] = (), formulation: int | None = 1, nan: bool = False
) -> dict[str, Any]:
    """A toy's graphs, which know a reconstruction, and a second network with its table: `prediction` = 0.3 x - mean(row), or
    with `nan` what is not a number."""
    models = toy.models_of(formulation, SIZE, 4, False)
    second = toy.denoiser(SIZE, False, False)
    graph = second.graph
    graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(0.3), "a"))
    graph.node[-1].op_type = "Sub"
    graph.node[-1].output[0] = graph.output[0].name = prediction
    table = toy.timestep_table(0, False)
    if nan:  # of a network that runs, as constants are folded away: the root of what lies below 0
        graph.node[-1].output[0] = "finite"
        graph.initializer.append(numpy_helper.from_array(np.float32(-1), "minus"))
        graph.node.append(helper.make_node("Mul", ["finite", "finite"], ["squared"]))
        graph.node.append(helper.make_node("Sub", ["minus", "squared"], ["below"]))
        graph.node.append(helper.make_node("Sqrt", ["below"], [prediction]))
    models |= {"regulariser": second, "regulariser_table": table}
    for name in learned:
        graph = models[name].graph
        graph.node.append(helper.make_node("Tanh", ["x"], ["v_out"]))
        graph.output.append(helper.make_tensor_value_info("v_out", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE]))
    return models


def call(graph: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
    """One call of a manifest."""
    return {"graph": graph, "inputs": inputs, "outputs": outputs}


def build(
    path: Path,
    prediction: str = "x0",
    mode: str = "off",
    backends: Sequence[str] = ("onnxruntime", "openvino"),
    learned: Sequence[str] = (),
    sized: bool = False,
    nan: bool = False,
    **changes: Any,
) -> Path:
    """Write a bundle whose own network predicts eps and its regulariser `prediction`; learned: the networks that say a
    variance, "denoiser" and "regulariser"; sized: an unconditional one that makes other sizes too, in tiles; nan: the
    regulariser returns what is not a number; changes: fields of the manifest in place of its own."""
    formulation = None if sized else 1
    models = networks(prediction, learned, formulation, nan)
    raw = toy.manifest_of(models, formulation, SIZE, 4, False, backends, defaults={"steps": 5})
    more = {name: {"v_out": "variance"} if name in learned else {} for name in ("denoiser", "regulariser")}
    raw["pipeline"]["regulariser"] = {
        "rows": call("regulariser_table", {"timesteps": "timesteps"}, {"rows": "rows"}),
        "step": call("regulariser", {"x": "x", "row": "rows"}, {prediction: "e"} | more["regulariser"]),
        "prediction": prediction,
    }
    raw["regularise"] = {"mode": mode, "interval": None}
    raw["pipeline"]["step"]["outputs"] |= more["denoiser"]
    raw |= changes
    write_bundle(path, raw, {f"{name}.onnx": model.SerializeToString() for name, model in models.items()})
    return path


def own(x: F64, t: int, recon: F64) -> F64:
    """What the pipeline's own network returns: eps."""
    return 0.1 * x + 0.2 * recon + t * 3.5 / 6000


def second(x: F64, t: int) -> F64:
    """What the regulariser returns."""
    return 0.3 * x - t * 3.5 / 6000
