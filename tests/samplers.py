"""What the Sampler's tests share: installed backends, toy bundles made once, and a graph that counts its calls."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from engine import Sampler
from engine.backends import available
from engine.bundle.writer import write_bundle
from tests import toy

SIZE, Z_DIM, T = 8, 4, 1000
GRAPH_BACKENDS = ("openvino", "onnxruntime")  # which run a bundle's graphs themselves, on any processor
EACH_BACKEND = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(not available()[name][0], reason=f"{name} is {available()[name][1]}"))
        for name in GRAPH_BACKENDS
    ],
)
ANY_BACKEND = next((name for name in reversed(GRAPH_BACKENDS) if available()[name][0]), "onnxruntime")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="toy-bundles-")


@functools.cache
def bundle(kind: str = "form1") -> Path:
    """A toy bundle: form1, form2, zcond, uncond, nan, or recorded (formulation 1 with a recorded t_start)."""
    if kind == "nan":
        return nan_bundle(Path(_folder().name) / "nan.bundle")
    options: dict[str, dict[str, Any]] = {
        "form1": {},
        "form2": {"formulation": 2},
        "zcond": {"z_conditioned": True},
        "uncond": {"formulation": None},
        "recorded": {"defaults": {"steps": 4, "spacing": "linspace", "t_start": 450, "temperature": 0.8, "guidance": 0.25}},
    }
    return toy.build_bundle(Path(_folder().name) / f"{kind}.bundle", **options[kind])


def nan_bundle(path: Path) -> Path:
    """A toy whose denoiser adds sqrt(mean(row) - 0.2), which is NaN below timestep 343.

    The NaN must arise while the graph runs: OpenVINO folds arithmetic with a NaN constant away.
    """
    models = toy.models_of(1, SIZE, Z_DIM, False)
    graph = models["denoiser"].graph
    graph.node[-1].output[0] = "finite"
    graph.initializer.append(numpy_helper.from_array(np.float32(0.2), "limit"))
    graph.node.extend(
        [
            helper.make_node("Sub", ["offset", "limit"], ["under_root"]),
            helper.make_node("Sqrt", ["under_root"], ["root"]),
            helper.make_node("Add", ["finite", "root"], ["eps"]),
        ]
    )
    files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    write_bundle(path, toy.manifest_of(models, 1, SIZE, Z_DIM, False, list(GRAPH_BACKENDS)), files)
    return path


def open_toy(kind: str = "form1", backend: str = ANY_BACKEND, **options: Any) -> Sampler:
    """A Sampler of a toy bundle in float32 on two threads."""
    return Sampler(bundle(kind), backend, "f32", **{"threads": 2, **options})


class CountingGraph:
    """Stands in for a loaded graph and counts its calls; with `answer` it returns that instead of running."""

    def __init__(self, graph: Any, answer: dict[str, np.ndarray] | None = None) -> None:
        self.graph, self.answer, self.calls, self.batches = graph, answer, 0, list[int]()

    def __call__(self, **inputs: np.ndarray) -> Any:
        self.calls += 1
        self.batches.append(len(next(iter(inputs.values()))))
        return self.graph(**inputs) if self.answer is None else self.answer

    def clone(self) -> Any:
        return self.graph.clone()

    def close(self) -> None:
        self.graph.close()


def watch_graph(sampler: Sampler, name: str = "denoiser", answer: dict[str, np.ndarray] | None = None) -> CountingGraph:
    """Put a CountingGraph in the place of one of a sampler's graphs."""
    backend = sampler._pipeline.backend
    counting = CountingGraph(backend.graph(name), answer)
    backend._graphs[name] = counting  # type: ignore[assignment]
    return counting
