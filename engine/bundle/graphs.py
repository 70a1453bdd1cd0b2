"""Exported graphs: their entries in a manifest, checked. Which of them run when is the pipeline's business.

A graph is kept under its name (float32) or under NAME.fp16. `sampler` is the whole pipeline as one graph, with the step
table as an input; the pipeline never names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from engine.bundle.fields import Fields
from engine.bundle.files import MAX_GRAPH_BYTES, FileSpec
from engine.bundle.schema import nested, read
from engine.bundle.tensors import TensorSpec, parse_tensors

SAMPLER = "sampler"
GRAPH_PRECISIONS = ("f32", "fp16")  # of the stored weights; a runtime may compute in less when asked to
PRECISIONS = ("f32", "bf16", "fp16", "int8")  # that a caller may ask for; a backend has some of them
GRAPH_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Parity:
    """What was measured against the reference when the graph was exported."""

    reference: Annotated[str, Fields.text]
    max_relative_error: Annotated[float, Fields.number, 0.0, 1e9]
    batches: Annotated[tuple[int, ...], parse_batches]
    runtimes: Annotated[dict[str, float], parse_runtimes]


@dataclass(frozen=True)
class GraphSpec(FileSpec):
    """One exported graph and the file that holds it.

    weights: the file that has its large weights, where they are more than an ONNX file may hold (MAX_GRAPH_BYTES)
    compute: {precision asked for: precision that this graph runs in}, where they differ: what a timestep table would round
    off enters every step, so it stays in float32, and int8 may be the denoiser's alone.
    """

    size: Annotated[int, Fields.integer, 1, MAX_GRAPH_BYTES]
    weights: Annotated[FileSpec, nested, FileSpec] | None
    precision: Annotated[str, Fields.choice, "precisions"]
    opset: Annotated[int, Fields.integer, 1, 1000]
    inputs: Annotated[tuple[TensorSpec, ...], parse_tensors]
    outputs: Annotated[tuple[TensorSpec, ...], parse_tensors]
    parity: Annotated[Parity, nested, Parity]
    compute: Annotated[dict[str, str], parse_compute]

    def computes_in(self, asked: str) -> str:
        """The precision that this graph runs in when `asked` is what the caller wants."""
        return self.compute.get(asked, asked)


def graph_key(name: str, precision: str = "f32") -> str:
    """The key of a graph in `graphs`: `denoiser`, `denoiser.fp16`, `sampler`, ..."""
    return name if precision == "f32" else f"{name}.{precision}"


def graph_of(key: str) -> str:
    """The name of the graph under a key."""
    return key.partition(".")[0]


def parse_graphs(fields: Fields) -> dict[str, GraphSpec]:
    """The graphs by key."""
    graphs: dict[str, GraphSpec] = {}
    for key in fields:
        name, _, suffix = key.partition(".")
        if not GRAPH_NAME.fullmatch(name) or suffix not in ("", *GRAPH_PRECISIONS[1:]) or key.endswith("."):
            fields.refuse(key, "a graph under NAME or NAME.fp16, NAME of lower-case letters, digits and '_'")
        graphs[key] = read(GraphSpec, fields.object(key), precisions=(suffix or "f32",))
    fields.done()
    return graphs


def check_twins(top: Fields, graphs: Mapping[str, GraphSpec]) -> None:
    """A graph in half takes and gives what the one in float32 does."""
    fields = top.object("graphs")
    for key, graph in graphs.items():
        name = graph_of(key)
        if name == key:
            continue
        twin = graphs.get(name)
        if twin is None:
            fields.refuse(key, f"{name} in float32 beside it")
        if (twin.inputs, twin.outputs) != (graph.inputs, graph.outputs):
            fields.refuse(key, f"the inputs and outputs of {name}")


def parse_compute(fields: Fields, key: str) -> dict[str, str]:
    """{precision: precision}, any of them or none."""
    entries = fields.object(key)
    compute = {asked: entries.choice(asked, PRECISIONS) for asked in entries if asked in PRECISIONS}
    entries.done(PRECISIONS)
    return compute


def parse_batches(fields: Fields, key: str) -> tuple[int, ...]:
    """Batch sizes, at least one."""
    batches = fields.items(key, "a list of batch sizes")
    if any(type(n) is not int or n < 1 for n in batches):
        fields.refuse(key, "a list of batch sizes of at least 1")
    return tuple(batches)


def parse_runtimes(fields: Fields, key: str) -> dict[str, float]:
    """{runtime: relative error} under any names."""
    runtimes = fields.object(key)
    return {name: runtimes.number(name, 0.0, 1e9) for name in runtimes}
