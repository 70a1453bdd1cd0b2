"""The variant for a stock server without this package: a bundle's whole-sampler graph through Triton's own backends.

The step table is an input there (`diffusevae steps` writes it), so any client can ask for any solver, and draws the noise
itself. The inputs share no first dimension, so Triton cannot batch across requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.bundle.graphs import SAMPLER, GraphSpec, graph_key
from engine.bundle.reader import Bundle
from engine.bundle.tensors import TensorSpec
from engine.triton.config import LATEST, instance_groups, parameters
from engine.triton.pbtxt import Value, Word
from engine.triton.serving import GRAPH_SUFFIX, Settled
from engine.triton.tensors import FREE, KINDS


@dataclass(frozen=True)
class GraphModel:
    """A whole-sampler graph as a model of a stock backend: its verified bytes, what Triton calls it, its tensors."""

    platform: str
    data: bytes
    file: str
    spec: GraphSpec


def graph_model(bundle: Bundle, settled: Settled) -> GraphModel | None:
    """The plan of TensorRT proper on a GPU where the bundle has one, else the ONNX graph, else None.

    Triton's TensorRT backend reads no plans of TensorRT for RTX.
    """
    graphs = bundle.manifest.graphs
    key = graph_key(SAMPLER, settled.precision) if graph_key(SAMPLER, settled.precision) in graphs else SAMPLER
    if key not in graphs:
        return None
    if settled.kind == "gpu" and settled.backend == "tensorrt":
        for engine in bundle.manifest.engines:
            if (engine.backend, engine.graph) == ("tensorrt", SAMPLER) and settled.precision in ("auto", engine.precision):
                return GraphModel("tensorrt_plan", bundle.read_engine(engine, "plan"), "model.plan", graphs[key])
    return GraphModel("onnxruntime_onnx", bundle.read_graph(key), "model.onnx", graphs[key])


def graph_config(model: GraphModel, settled: Settled) -> dict[str, Value]:
    """The fields of its config.pbtxt."""
    threads: dict[str, Value] = {}
    if settled.threads is not None and model.platform == "onnxruntime_onnx":
        threads["parameters"] = parameters({"intra_op_thread_count": str(settled.threads)})
    return {
        "name": settled.name + GRAPH_SUFFIX,
        "platform": model.platform,
        "default_model_filename": model.file,
        "max_batch_size": 0,
        "version_policy": LATEST,
        "input": [_tensor(tensor) for tensor in model.spec.inputs],
        "output": [_tensor(tensor) for tensor in model.spec.outputs],
        "instance_group": instance_groups(settled),
        **threads,
    }


def _tensor(tensor: TensorSpec) -> dict[str, Value]:
    dims: list[Value] = [size if isinstance(size, int) else FREE for size in tensor.shape]
    return {"name": tensor.name, "data_type": Word(KINDS[tensor.dtype]), "dims": dims}
