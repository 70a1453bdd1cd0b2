"""Plans of guides by TensorRT for RTX: a reference classifier's gradient, a whole sampler with one, and what is left out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from engine.bundle.reader import Bundle
from export.context import Graph, Watch
from export.engines import BuildContext
from export.graphs.onnx_export import export_onnx
from export.graphs.sampler_role import sampler_role
from export.guides import Guidance, guide_role
from export.tensorrt.engines import build_plans
from tests import adm_guides as guided
from tests import adm_models as golden
from tests import guided_toy
from tests.sampler_graphs import compose, roles_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx: pip install tensorrt-rtx-cu13"
)


class Notes(Watch):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def context_of(pipeline: Any, graphs: list[Graph], watch: Watch) -> BuildContext:
    """What the builder looks at."""
    schedule = SimpleNamespace(T=1000)
    model = SimpleNamespace(defaults={"steps": 10}, schedule=schedule, free=lambda graph: None, wiring=pipeline)
    return BuildContext(cast(Any, model), tuple(graphs), watch)


def graphs_of(bundle: Bundle) -> list[Graph]:
    """Those of the toy's guides, and its whole sampler."""
    manifest, roles = bundle.manifest, roles_of(bundle)
    found = [Graph(roles[name], bundle.read_graph(name), {}) for name in sorted(manifest.pipeline.guide_graphs)]
    return [*found, Graph(sampler_role(manifest.inputs, manifest.pipeline, roles), compose(bundle), {})]


def built(tmp_path: Path, guides: int, *targets: str) -> tuple[list[str], list[str]]:
    """The graphs that have a plan, and what was noted."""
    bundle, watch = Bundle.open(guided_toy.build(tmp_path / "toy.bundle", guides)), Notes()
    context = context_of(bundle.manifest.pipeline, graphs_of(bundle), watch)
    found = build_plans("tensorrt_rtx", context, "f32", {"targets": targets})
    return [engine.entry["graph"] for engine in found], watch.notes


def test_one_guide(tmp_path: Path) -> None:
    """An If in a Loop is built for."""
    assert built(tmp_path, 1, "sm89") == (["guide_0", "guide_table", "sampler"], [])


def test_a_sampler_of_several_guides_is_left_out(tmp_path: Path) -> None:
    plans, notes = built(tmp_path, 2, "sm89")
    assert plans == ["guide_0", "guide_1", "guide_table"]
    assert notes == ["tensorrt_rtx: no plan of sampler: TensorRT builds none of several guides"]


def test_turing_has_no_guides(tmp_path: Path) -> None:
    plans, notes = built(tmp_path, 1, "sm75", "sm86")
    assert plans == []
    assert [note.split(": ")[1].split()[-1] for note in notes] == ["guide_0", "guide_table", "sampler"]


def test_a_reference_classifier(tmp_path: Path) -> None:
    """Its gradient in float32, whichever precision the network has."""
    torch.set_num_threads(1)
    network = guided.network("classifier_adaptive")
    classes = golden.config("classifier_adaptive")["arch"]["out_channels"]
    role = guide_role(network, Guidance((3, 16, 16), classes, network.row_width))
    pipeline = SimpleNamespace(guides=(None,), guide_graphs={"guide"}, regulariser=None)
    graph = Graph(role, export_onnx(role).data, {})
    options = {"targets": ("sm89",), "trt_batch": (1, 2, 8)}
    (engine,) = build_plans("tensorrt_rtx", context_of(pipeline, [graph], Watch()), "fp16", options)
    entry = engine.entry
    assert (entry["graph"], entry["precision"], entry["source_sha256"]) == ("guide", "f32", graph.sha256)
    assert entry["options"]["profile"] == {"batch": [1, 2, 8]}
    assert entry["record"]["graph"] == "guide"
    assert entry["record"]["layer_kinds"]["correlation"] > 20, "convolutions of the forward and of the gradient"
    assert list(engine.files) == ["guide.tensorrt_rtx.f32.plan"]
