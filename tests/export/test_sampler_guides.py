"""Guides in the whole-sampler graph, on a toy: beside the Sampler in every mode and runtime, and rows that make no call."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engine import Sampler
from engine.bundle.reader import Bundle
from engine.bundle.whole import sampler_contract
from engine.feeds import noise_feeds, setting_feeds
from engine.kernels import ROW_FIELDS
from engine.solver.noise import resolve_seeds
from export.graphs.parity import LOADERS
from export.graphs.reference import WholeSampler
from export.graphs.roles import Inputs, Role
from export.graphs.sampler_role import sampler_role
from tests import guided_toy
from tests.sampler_graphs import compose, roles_of
from tests.samplers import EACH_BACKEND

FOLDER = tempfile.TemporaryDirectory(prefix="guided-")
LABELS, SEEDS = np.array([0, 2, 1]), resolve_seeds(3, 3)
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"guide_scale": 0.0},
    {"guide_mode": "norm", "guide_scale": 0.2, "steps": 6, "method": "ddim_clipped", "eta": 0.5},
    {"guide_mode": "entropy", "guide_scale": 0.2, "steps": 6, "method": "ddpm"},
    {"guide_interval": (300, 600), "guide_scale": -0.2, "steps": 6, "method": "ddpm"},
)


@functools.cache
def bundle(guides: int, nan: bool = False) -> Bundle:
    return Bundle.open(guided_toy.build(Path(FOLDER.name) / f"{guides}{nan}.bundle", guides, nan=nan))


@functools.cache
def composed(guides: int, nan: bool = False) -> bytes:
    return compose(bundle(guides, nan))


def feeds_of(opened: Bundle, options: dict[str, Any], **inputs: np.ndarray) -> dict[str, np.ndarray]:
    feeds, table = setting_feeds(opened.manifest, options)
    return feeds | noise_feeds(opened.manifest, table, SEEDS, None, inputs)


@EACH_BACKEND
@pytest.mark.parametrize("guides", [1, 2])
@pytest.mark.parametrize("options", SETTINGS)
def test_it_is_the_sampler(guides: int, options: dict[str, Any], backend: str) -> None:
    opened = bundle(guides)
    found = LOADERS[backend](composed(guides))(feeds_of(opened, options, label=LABELS))["x"]
    with Sampler(opened, backend, "f32", threads=1) as sampler:
        expected = sampler.sample(seed=SEEDS, label=LABELS, **options).x
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("interval", [(0, 499), (500, 999)])
def test_the_guide_of_a_timestep(interval: tuple[int, int]) -> None:
    """Of two guides the graph without the other's weights gives the same; the boundary is the lower one's."""
    options = {"timesteps": [900, 700, 501, 500, 120, 3], "method": "ddpm", "guide_scale": 0.3, "guide_interval": interval}
    feeds = feeds_of(bundle(2), options, label=LABELS)
    expected = LOADERS["onnxruntime"](composed(2))(feeds)["x"]
    for slope, own in zip(guided_toy.SLOPES, (interval[0] == 0, interval[0] == 500), strict=True):
        model, changed = onnx.load_from_string(composed(2)), 0
        for tensor in tensors(model.graph):
            if tensor.name.endswith("/slope") and np.isclose(numpy_helper.to_array(tensor), slope):
                tensor.CopyFrom(numpy_helper.from_array(np.float32(7), tensor.name))
                changed += 1
        assert changed == 1, "each weight is stored once"
        same = np.array_equal(LOADERS["onnxruntime"](model.SerializeToString())(feeds)["x"], expected)
        at_500 = interval[0] == 500 and slope == guided_toy.SLOPES[0]  # the row of timestep 500
        assert same == (not own and not at_500)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Those of a graph and of all graphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from tensors(attribute.g)


@EACH_BACKEND
def test_a_row_without_a_guide_runs_none(backend: str) -> None:
    """A guide that gives NaN would be seen in any row that it is called in, as 0 NaN is NaN."""
    opened, run = bundle(1, nan=True), LOADERS[backend](composed(1, nan=True))
    for options, finite in (({"guide_scale": 0.0}, True), ({"guide_scale": 0.1}, False)):
        found = run(feeds_of(opened, {"method": "ddpm", "steps": 4, **options}, label=LABELS))["x"]
        assert np.isfinite(found[[0, 2]]).all()
        assert np.isfinite(found[1]).all() == finite
    feeds = feeds_of(opened, {"method": "ddpm", "steps": 4, "guide_scale": 0.1}, label=LABELS)
    feeds["coefficients"][:, ROW_FIELDS.index("k_g")] = 0.0
    assert np.isfinite(run(feeds)["x"]).all()


def test_feeds_without_a_guide_ask_for_no_label() -> None:
    feeds = feeds_of(bundle(1), {"guide_scale": 0.0})
    assert feeds["label"].tolist() == [0, 0, 0]
    assert feeds["label"].dtype == np.int64
    assert feeds["guide_mode"].tolist() == [0]
    assert feeds_of(bundle(1), {"guide_mode": "norm"}, label=LABELS)["guide_mode"].tolist() == [2]


def test_the_signature_is_the_manifest_s() -> None:
    manifest = bundle(1).manifest
    role = sampler_role(manifest.inputs, manifest.pipeline, roles_of(bundle(1)))
    takes, _ = sampler_contract(manifest.inputs, manifest.pipeline)
    assert {t.name: f"{t.dtype}[{', '.join(map(str, t.shape))}]" for t in role.inputs} == takes
    assert takes["guide_mode"] == "int64[1]"
    assert [i.name for i in onnx.load_from_string(composed(1)).graph.input] == [t.name for t in role.inputs]


class Run(torch.nn.Module):
    """A graph of the toy as a torch module."""

    def __init__(self, model: bytes, names: list[str]) -> None:
        super().__init__()
        self.run, self.names = LOADERS["onnxruntime"](model), names

    def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.run({name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()})
        return tuple(torch.from_numpy(found[name]) for name in self.names)


@pytest.mark.parametrize("options", SETTINGS)
def test_the_loop_in_torch(options: dict[str, Any]) -> None:
    opened, roles = bundle(2), {}
    for name, role in roles_of(bundle(2)).items():
        module = Run(opened.read_graph(name), [spec.name for spec in role.outputs])
        roles[name] = Role(name, module, role.inputs, role.outputs)
    feeds: Inputs = {name: torch.from_numpy(a) for name, a in feeds_of(opened, options, label=LABELS).items()}
    whole = WholeSampler(opened.manifest.pipeline, roles)
    found = LOADERS["onnxruntime"](composed(2))({name: value.numpy() for name, value in feeds.items()})["x"]
    np.testing.assert_allclose(found, whole(**feeds)[0].numpy(), rtol=0, atol=1e-5)
