"""A toy bundle with guides: small graphs whose gradient is known, made without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.bundle.writer import write_bundle
from tests import toy

SIZE, CLASSES, WIDTH = 8, 3, 2
SLOPES = (0.3, -0.2)  # of the guides, the first of the clean end


def guide_graph(slope: float, *, knows_time: bool, nan: bool = False) -> onnx.ModelProto:
    """g = slope x + 0.1 label (+ mean(row)), or NaN for samples of label 2 with `nan`; entropy = 0.1 + mean(x^2)."""
    image = ["batch", 3, SIZE, SIZE]
    f32, i64 = TensorProto.FLOAT, TensorProto.INT64
    constants = {"slope": np.float32(slope), "tenth": np.float32(0.1), "one": np.array([-1, 1, 1, 1], np.int64)}
    nodes = [
        helper.make_node("Cast", ["label"], ["y"], to=f32),
        helper.make_node("Mul", ["y", "tenth"], ["by_label"]),
        helper.make_node("Reshape", ["by_label", "one"], ["wide"]),
        helper.make_node("Mul", ["x", "slope"], ["by_x"]),
        helper.make_node("Add", ["by_x", "wide"], ["sum"]),
        helper.make_node("Mul", ["x", "x"], ["squared"]),
        helper.make_node("ReduceMean", ["squared", "axes"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "tenth"], ["entropy"]),
    ]
    constants["axes"] = np.array([1, 2, 3], np.int64)
    inputs = [helper.make_tensor_value_info("x", f32, image), helper.make_tensor_value_info("label", i64, ["batch"])]
    last = "sum"
    if knows_time:
        inputs.append(helper.make_tensor_value_info("row", f32, [1, WIDTH]))
        nodes += [
            helper.make_node("ReduceMean", ["row"], ["level"], keepdims=1),
            helper.make_node("Reshape", ["level", "single"], ["level4"]),
            helper.make_node("Add", [last, "level4"], ["timed"]),
        ]
        constants["single"], last = np.array([1, 1, 1, 1], np.int64), "timed"
    if nan:
        nodes += [  # 0 / 0 for label 2
            helper.make_node("Sub", ["wide", "fifth"], ["off"]),
            helper.make_node("Div", ["off", "off"], ["unity"]),
            helper.make_node("Mul", [last, "unity"], ["spoilt"]),
        ]
        constants["fifth"], last = np.float32(2) * np.float32(0.1), "spoilt"
    nodes.append(helper.make_node("Identity", [last], ["g"]))
    outputs = [helper.make_tensor_value_info("g", f32, image), helper.make_tensor_value_info("entropy", f32, ["batch"])]
    return _model("guide", nodes, inputs, outputs, constants)


def table_graph() -> onnx.ModelProto:
    """rows = t / 1000 twice."""
    inputs = [helper.make_tensor_value_info("timesteps", TensorProto.INT64, ["steps"])]
    outputs = [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["steps", WIDTH])]
    nodes = [
        helper.make_node("Cast", ["timesteps"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["t", "column"], ["column_t"]),
        helper.make_node("Mul", ["column_t", "both"], ["rows"]),
    ]
    constants = {"column": np.array([-1, 1], np.int64), "both": np.full((1, WIDTH), 1e-3, np.float32)}
    return _model("guide_table", nodes, inputs, outputs, constants)


def _model(name: str, nodes: Sequence[Any], inputs: Any, outputs: Any, constants: dict[str, Any]) -> onnx.ModelProto:
    made = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", toy.OPSET)], ir_version=toy.IR_VERSION)
    onnx.checker.check_model(model)
    return model


def manifest_of(models: dict[str, onnx.ModelProto], backends: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """That of an unconditional toy with a guide of the whole schedule, or two that meet at 500."""
    raw = toy.manifest_of(models, None, SIZE, 0, False, backends, defaults=defaults)
    raw["inputs"] = [
        {"name": "label", "dtype": "int64", "shape": ["batch"], "range": [0, CLASSES - 1], "draw": None, "null": None,
         "picture": None}
    ]  # fmt: skip
    guides = [name for name in models if name.startswith("guide_") and name != "guide_table"]
    raw["pipeline"]["guides"] = []
    for index, name in enumerate(guides):
        timed = index == 0
        rows = {"graph": "guide_table", "inputs": {"timesteps": "timesteps"}, "outputs": {"rows": "rows"}} if timed else None
        takes = {"x": "x", "label": "label"} | ({"row": "rows"} if timed else {})
        low, high = (0, 999) if len(guides) == 1 else (500 * index, (500, 999)[index])
        step = {"graph": name, "inputs": takes, "outputs": {one.name: one.name for one in models[name].graph.output}}
        raw["pipeline"]["guides"].append({"rows": rows, "step": step, "timesteps": [low, high], "classes": CLASSES})
    raw["guide"] = {"scale": 2.0, "mode": "constant", "interval": None}
    return raw


def learn_variance(denoiser: onnx.ModelProto) -> None:
    """Give the network a second output, v = tanh(x)."""
    denoiser.graph.node.append(helper.make_node("Tanh", ["x"], ["v"]))
    denoiser.graph.output.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE]))
    onnx.checker.check_model(denoiser, full_check=True)


def build(
    path: Path, guides: int = 1, backends: Sequence[str] = ("onnxruntime", "openvino"), nan: bool = False,
    learned: bool = False, entropy: bool = True, **changes: Any,
) -> Path:  # fmt: skip
    """Write a bundle; learned: the network says what noise each element gets; entropy: whether the last guide gives it;
    changes: fields of the manifest in place of its own."""
    models = toy.models_of(None, SIZE, 0, False)
    if learned:
        learn_variance(models["denoiser"])
    models |= {f"guide_{i}": guide_graph(SLOPES[i], knows_time=i == 0, nan=nan) for i in range(guides)}
    if not entropy:
        del models[f"guide_{guides - 1}"].graph.output[1]
    models["guide_table"] = table_graph()
    defaults = {"steps": 5, "method": "ddim_clipped"}
    raw = manifest_of(models, backends, defaults) | changes
    if learned:
        raw["variance"] = "learned_range"
        raw["pipeline"]["step"]["outputs"]["v"] = "variance"
    write_bundle(path, raw, {f"{name}.onnx": model.SerializeToString() for name, model in models.items()})
    return path
