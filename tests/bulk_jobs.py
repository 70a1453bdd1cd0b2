"""What the tests of bulk jobs share: a small job over a toy bundle, its folder read back, and models of features."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engine import Bundle
from engine.bulk.job import Job, describe
from engine.bulk.maker import Means
from engine.bulk.run import Result, generate
from tests.samplers import ANY_BACKEND, SIZE, bundle

MEANS = Means(ANY_BACKEND, "f32", 2)


def opened(kind: str = "form1") -> Bundle:
    return Bundle.open(bundle(kind))


def small_job(**options: Any) -> Job:
    """23 images in five shards, the last of three; shards in pieces of two."""
    kind = options.pop("kind", "form1")
    return describe(opened(kind), **{"n": 23, "seed": 7, "shard_size": 5, "batch": 2, "steps": 2, **options})


def run(out: Path, job: Job | None = None, means: Means = MEANS, kind: str = "form1", **options: Any) -> Result:
    return generate(job or small_job(), opened(kind), out, means, **options)


def whole_hash(out: Path) -> str:
    """The manifest's hash of the whole, after every file was held against the manifest."""
    manifest = json.loads((out / "manifest.json").read_text())
    lines = ""
    for shard in manifest["shards"]:
        data = (out / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["size"], shard["sha256"])
        lines += f"{shard['sha256']}  {shard['file']}\n"
    assert "".join(path.read_text() for path in sorted(out.glob("shard-*.sha256"))) == lines
    assert hashlib.sha256(lines.encode()).hexdigest() == manifest["sha256"]
    names = {shard["file"] for shard in manifest["shards"]}
    names |= {f"{name}.sha256" for name in names} | {"job.json", "manifest.json"}
    assert {path.name for path in out.iterdir()} == names, "nothing is left over"
    return str(manifest["sha256"])


def samples(out: Path) -> np.ndarray:
    """Every sample of a finished .npy job."""
    manifest = json.loads((out / "manifest.json").read_text())
    return np.concatenate([np.load(out / shard["file"]) for shard in manifest["shards"]])


def extractor(dtype: str = "uint8", *, shape: list[Any] | None = None, nan: bool = False) -> bytes:
    """An ONNX model: the mean of each picture's channels in [0, 1], [N, 3]; or NaN."""
    pixels = dtype == "uint8"
    shape = shape or (["n", SIZE, SIZE, 3] if pixels else ["n", 3, SIZE, SIZE])
    nodes, last = [], "image"
    if pixels:
        nodes.append(helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Div", ["floats", "scale"], ["unit"]))
        last = "unit"
    nodes.append(helper.make_node("ReduceMean", [last, "axes"], ["mean" if nan else "features"], keepdims=0))
    if nan:
        nodes += [helper.make_node("Sub", ["mean", "one"], ["below"]), helper.make_node("Sqrt", ["below"], ["features"])]
    constants = {"axes": np.array([1, 2] if pixels else [2, 3]), "scale": np.float32(255), "one": np.float32(1)}
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("image", TensorProto.UINT8 if pixels else TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())
