"""Toy bundles: small graphs wired like the real ones, made in milliseconds and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engine.bundle.writer import write_bundle

ROW_WIDTH = 6
OPSET = 21
IR_VERSION = 10

DEFAULTS: dict[str, Any] = {
    "steps": 10, "timesteps": None, "spacing": "uniform", "rho": 7.0, "method": "ddim", "eta": 0.0, "t_start": None,
    "temperature": 1.0, "noise_scale": 1.0, "eps_scale": 1.0, "guidance": 0.0,
}  # fmt: skip


def build_bundle(
    path: str | Path,
    formulation: int | None = 1,
    image_size: int = 8,
    z_dim: int = 4,
    z_conditioned: bool = False,
    backends: Sequence[str] = ("onnxruntime", "openvino"),
    nan: bool = False,
    T: int = 1000,
    defaults: dict[str, Any] | None = None,
) -> Path:
    """Write a complete toy bundle of a DiffuseVAE kind and return its folder; `formulation=None` makes it unconditional.

    denoiser: eps = 0.1*x + 0.2*cond + mean(row); with `nan=True` every eps is NaN.
    timestep_table: row[k] = (k + 1) * t / 6000; with z_conditioned plus 0.01 * mean(z).
    vae_decoder: 2 * sigmoid(z @ W) - 1; vae_encoder: mu = (image - 0.5) @ V, logvar = -2 + 0.01 * mu (W, V fixed random).
    """
    size, models = image_size, models_of(formulation, image_size, z_dim, z_conditioned, nan)
    files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    write_bundle(path, manifest_of(models, formulation, size, z_dim, z_conditioned, backends, T, defaults), files)
    return Path(path)


def models_of(
    formulation: int | None, image_size: int, z_dim: int, z_conditioned: bool, nan: bool = False
) -> dict[str, onnx.ModelProto]:
    """The ONNX models of a toy bundle by graph name."""
    conditional = formulation is not None
    models = {
        "timestep_table": timestep_table(z_dim, z_conditioned),
        "denoiser": denoiser(image_size, conditional, z_conditioned, nan),
    }
    if conditional:
        models["vae_encoder"] = vae_encoder(image_size, z_dim)
        models["vae_decoder"] = vae_decoder(image_size, z_dim)
    return models


def manifest_of(
    models: dict[str, onnx.ModelProto],
    formulation: int | None,
    image_size: int,
    z_dim: int,
    z_conditioned: bool,
    backends: Sequence[str],
    T: int = 1000,
    defaults: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of these models, without the sizes and hashes that `write_bundle` fills in."""
    return {
        "format": "diffusevae-bundle",
        "format_version": 3,
        "name": "toy",
        "family": "toy",
        "architecture": {"kind": "toy"},
        **wiring(formulation, image_size, z_dim, z_conditioned),
        "schedule": {"recipe": "linear", "T": T, "start": 1e-4, "end": 0.02},
        "prediction": "eps",
        "variance": "fixedlarge",
        "defaults": DEFAULTS | (defaults or {}),
        "source": {
            "file": "toy.ckpt",
            "sha256": "0" * 64,
            "weights": "ema",
            "other_file": None,
            "other_sha256": None,
        },
        "backends": list(backends),
        "graphs": {name: graph_entry(name, model, T) for name, model in models.items()},
        "fitted": None,
        "refine": None,
        "prior": None,
        "directions": None,
        "text": None,
        "engines": [],
        "built_with": {"onnx": onnx.__version__},
    }


def wiring(formulation: int | None, image_size: int, z_dim: int, z_conditioned: bool) -> dict[str, Any]:
    """`inputs` and `pipeline` of the toys."""
    state = {"channels": 3, "height": image_size, "width": image_size, "clip": 1.0, "centre": None, "start": None}
    rows: dict[str, Any] = {"graph": "timestep_table", "inputs": {"timesteps": "timesteps"}, "outputs": {"rows": "rows"}}
    step: dict[str, Any] = {"graph": "denoiser", "inputs": {"x": "x", "row": "rows"}, "outputs": {"eps": "e"}}
    pipeline: dict[str, Any] = {"encode": [], "before": [], "rows": rows, "step": step, "after": [], "nulls": {}}
    pipeline |= {"quantize": None, "state": state, "image": "x", "maps": [] if formulation is None else None}
    pipeline["multiple"] = None
    if formulation is None:
        return {"inputs": [], "pipeline": pipeline}
    z = {"name": "z", "dtype": "float32", "shape": ["batch", z_dim], "range": "unbounded", "draw": "normal"}
    state |= {"start": "recon", "centre": "recon" if formulation == 2 else None}
    if z_conditioned:
        rows["inputs"]["z"] = "z"
    step["inputs"]["cond"] = "recon"
    encoded = {"mu": "z", "logvar": "z_logvar"}
    pipeline["encode"] = [{"graph": "vae_encoder", "inputs": {"image": "image"}, "outputs": encoded}]
    pipeline["before"] = [{"graph": "vae_decoder", "inputs": {"z": "z"}, "outputs": {"image": "recon"}}]
    pipeline["nulls"] = {"recon": 0.0}
    return {"inputs": [z | {"picture": None, "null": 0.0 if z_conditioned else None}], "pipeline": pipeline}


def graph_entry(name: str, model: onnx.ModelProto, T: int = 1000) -> dict[str, Any]:
    """The manifest's entry of one model."""
    ranges: dict[str, Any] = {"timesteps": [0, T - 1], "cond": [-1, 1]}
    ranges["image"] = [0, 1] if name == "vae_encoder" else [-1, 1]
    compute = dict.fromkeys(("bf16", "int8", "fp16"), "f32") if name == "timestep_table" else {}

    def tensors(infos: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": info.name,
                "dtype": "int64" if info.type.tensor_type.elem_type == TensorProto.INT64 else "float32",
                "shape": [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim],
                "range": ranges.get(info.name, "unbounded"),
            }
            for info in infos
        ]

    return {
        "file": f"{name}.onnx",
        "precision": "f32",
        "opset": OPSET,
        "inputs": tensors(model.graph.input),
        "outputs": tensors(model.graph.output),
        "compute": compute, "weights": None,
        "parity": {
            "reference": "none (toy)",
            "max_relative_error": 0.0,
            "batches": [1, 2],
            "runtimes": {"onnxruntime": 0.0},
        },
    }


def denoiser(image_size: int, conditional: bool, z_conditioned: bool, nan: bool = False) -> onnx.ModelProto:
    """x, (cond), row -> eps = 0.1*x + 0.2*cond + mean(row)."""
    image = ["batch", 3, image_size, image_size]
    inputs = [_value("x", image), *([_value("cond", image)] if conditional else [])]
    inputs.append(_value("row", ["batch" if z_conditioned else 1, ROW_WIDTH]))
    weights = {"a": np.float32(np.nan if nan else 0.1), "b": np.float32(0.2)}
    weights |= {"axis": np.array([1], np.int64), "column": np.array([-1, 1, 1, 1], np.int64)}
    nodes = [
        helper.make_node("ReduceMean", ["row", "axis"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "column"], ["offset"]),
        helper.make_node("Mul", ["x", "a"], ["ax"]),
    ]
    if conditional:
        nodes.append(helper.make_node("Mul", ["cond", "b"], ["bc"]))
        nodes.append(helper.make_node("Add", ["ax", "bc"], ["both"]))
    nodes.append(helper.make_node("Add", ["both" if conditional else "ax", "offset"], ["eps"]))
    return _model("denoiser", nodes, inputs, [_value("eps", image)], weights)


def timestep_table(z_dim: int, z_conditioned: bool) -> onnx.ModelProto:
    """timesteps, (z) -> rows."""
    inputs = [_value("timesteps", ["steps"], TensorProto.INT64)]
    ramp = np.arange(1, ROW_WIDTH + 1, dtype=np.float32) / 6000
    weights = {"ramp": ramp, "column": np.array([-1, 1], np.int64)}
    nodes = [
        helper.make_node("Cast", ["timesteps"], ["t"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["t", "column"], ["t_column"]),
        helper.make_node("Mul", ["t_column", "ramp"], ["by_time" if z_conditioned else "rows"]),
    ]
    if not z_conditioned:
        return _model("timestep_table", nodes, inputs, [_value("rows", ["steps", ROW_WIDTH])], weights)
    inputs.append(_value("z", ["batch", z_dim]))
    weights |= {"one": np.array([1], np.int64), "scale": np.float32(0.01)}
    nodes += [
        helper.make_node("Unsqueeze", ["by_time", "one"], ["by_time_3d"]),
        helper.make_node("ReduceMean", ["z", "one"], ["z_mean"], keepdims=1),
        helper.make_node("Mul", ["z_mean", "scale"], ["by_z"]),
        helper.make_node("Add", ["by_time_3d", "by_z"], ["rows"]),
    ]
    return _model("timestep_table", nodes, inputs, [_value("rows", ["steps", "batch", ROW_WIDTH])], weights)


def vae_encoder(image_size: int, z_dim: int) -> onnx.ModelProto:
    """image -> mu, logvar."""
    pixels = 3 * image_size**2
    projection = np.random.default_rng(1).standard_normal((pixels, z_dim)) / np.sqrt(pixels)
    weights = {"flat": np.array([-1, pixels], np.int64), "half": np.float32(0.5)}
    weights |= {"V": projection.astype(np.float32), "scale": np.float32(0.01), "two": np.float32(2)}
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["pixels"]),
        helper.make_node("Sub", ["pixels", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "V"], ["mu"]),
        helper.make_node("Mul", ["mu", "scale"], ["small"]),
        helper.make_node("Sub", ["small", "two"], ["logvar"]),
    ]
    inputs = [_value("image", ["batch", 3, image_size, image_size])]
    outputs = [_value("mu", ["batch", z_dim]), _value("logvar", ["batch", z_dim])]
    return _model("vae_encoder", nodes, inputs, outputs, weights)


def vae_decoder(image_size: int, z_dim: int) -> onnx.ModelProto:
    """z -> image in [-1, 1]."""
    projection = np.random.default_rng(2).standard_normal((z_dim, 3 * image_size**2))
    weights = {"W": projection.astype(np.float32)}
    weights["shape"] = np.array([-1, 3, image_size, image_size], np.int64)
    weights |= {"two": np.float32(2), "one": np.float32(1)}
    nodes = [
        helper.make_node("MatMul", ["z", "W"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("Mul", ["probabilities", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "one"], ["signed"]),
        helper.make_node("Reshape", ["signed", "shape"], ["image"]),
    ]
    outputs = [_value("image", ["batch", 3, image_size, image_size])]
    return _model("vae_decoder", nodes, [_value("z", ["batch", z_dim])], outputs, weights)


def _value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: dict[str, Any],
) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
    graph = helper.make_graph(list(nodes), name, list(inputs), list(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
