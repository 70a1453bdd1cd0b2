"""Classifier guidance against its reference: from two plain state dicts to images, in every runtime on a CPU.

One of the four kinds in the default run, whose classifier has an adaptive pool and knows rescaled timesteps; with
DIFFUSEVAE_GOLDEN=all those with an attention pool and entropy-aware scaling too, and PPAP's experts by timestep: two
ResNets, of one base and two adapters, and by its gradient alone a ViT.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from engine.backends.native.backend import Native
from engine.bundle.guides import guide_of
from engine.bundle.reader import Bundle
from engine.feeds import noise_feeds, setting_feeds
from export.graphs.extra import GraphOptions
from export.graphs.parity import LOADERS
from tests import adm_guides as guided
from tests import adm_models as golden
from tests.latent_runs import ALL, difference
from tests.native_models import NEEDS_NATIVE
from tests.samplers import EACH_BACKEND

CHAINS = [(folder, chain) for folder, chain in guided.ALL_CHAINS if ALL or folder == "guided_adaptive"]
# Of a kind of experts: the graph of each, and what the reference calls it.
EXPERTS = [("experts", "guide_0", "expert0"), ("experts", "guide_1", "expert1"), ("vit_expert", "guide", "vit")]
BF16_CHAIN = 3e-2
Bundles = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """bundle(folder, chain): with the whole-sampler graph, and native engines where they can be run; chains of the same two
    networks share one."""
    import torch

    torch.set_num_threads(1)

    @functools.cache
    def build(which: Hashable) -> Path:
        folder, chain = next((f, c) for f, c in CHAINS if guided.bundle_of(f, c) == which)
        backends = ("onnxruntime", "openvino", *(["native"] if Native.available()[0] else []))
        whole, into = GraphOptions(whole_sampler=True), tmp_path_factory.mktemp("guided")
        return guided.build_guided(folder, chain, into, backends=backends, graph_options=whole)

    return lambda folder, chain: build(guided.bundle_of(folder, chain))


@EACH_BACKEND
@pytest.mark.parametrize(("folder", "chain"), CHAINS)
def test_chains_equal_the_reference(backend: str, folder: str, chain: str, bundle: Bundles) -> None:
    found: list[np.ndarray] = []
    with Sampler(bundle(folder, chain), backend, "f32", threads=1) as sampler:
        sampler.sample(2, callback=lambda info: found.append(info.x.copy()), **guided.options(folder, chain))
    for row, expected in golden.states(folder, chain).items():
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=golden.tolerance(folder, chain), err_msg=f"row {row}")


@EACH_BACKEND
@pytest.mark.parametrize(("folder", "chain"), CHAINS)
def test_the_whole_sampler_as_one_graph(backend: str, folder: str, chain: str, bundle: Bundles) -> None:
    opened, options = Bundle.open(bundle(folder, chain)), guided.options(folder, chain)
    arrays = {name: options.pop(name) for name in ("x_T", "noise", "label")}
    feeds, table = setting_feeds(opened.manifest, options)
    feeds |= noise_feeds(opened.manifest, table, np.array([0, 1], np.uint64), None, {"label": arrays["label"]})
    found = LOADERS[backend](opened.read_graph("sampler"))(feeds | {name: arrays[name] for name in ("x_T", "noise")})
    states, limit = golden.states(folder, chain), golden.tolerance(folder, chain)
    np.testing.assert_allclose(found["x"], states[max(states)], rtol=0, atol=limit)


@NEEDS_NATIVE
@pytest.mark.parametrize(("folder", "chain"), CHAINS)
def test_the_native_engine_runs_guides_but_those_that_bf16_costs_too_much(folder: str, chain: str, bundle: Bundles) -> None:
    opened = Bundle.open(bundle(folder, chain))
    why = "found a guide by a ResNet" if folder == guided.EXPERTS else "native bf16 guide: found a relative error of"
    for guide in opened.manifest.pipeline.guides:
        entry = opened.engine("native", "bf16", guide.step.graph)
        if entry.runs_on:
            assert entry.runs_on == ("onnxruntime", "openvino")
            assert why in entry.record["why"]
        else:
            assert entry.record["relative_error"] <= 0.04
    found: list[np.ndarray] = []
    with Sampler(opened, "native", "bf16", threads=1) as sampler:
        sampler.sample(2, callback=lambda info: found.append(info.x.copy()), **guided.options(folder, chain))
    states = golden.states(folder, chain)
    # The gradient of ReLU and max pooling jumps: in float32 too, 1e-4 of x_T become a tenth of an expert's last state.
    row = 0 if folder == guided.EXPERTS else max(states)
    assert difference(found[row], states[row]) < BF16_CHAIN


def test_what_a_guided_bundle_records(bundle: Bundles) -> None:
    folder, chain = CHAINS[0]
    manifest = Bundle.open(bundle(folder, chain)).manifest
    (guide,) = manifest.pipeline.guides
    assert (guide.classes, guide.timesteps) == (5, (0, manifest.schedule.T - 1))
    assert manifest.guide is not None
    assert manifest.guide.options == {"guide_scale": 1.0, "guide_mode": "constant", "guide_interval": None}
    assert manifest.source.other_file == f"{guided.case(folder, chain)[1]}.pt"
    assert manifest.graphs["guide"].computes_in("bf16") == "bf16"


@pytest.fixture(scope="module")
def experts(bundle: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """experts(kind): the bundle that they guide."""

    @functools.cache
    def build(kind: str) -> Bundle:
        if kind == "experts":
            return Bundle.open(bundle(guided.EXPERTS, guided.EXPERT_CHAINS[0]))
        return Bundle.open(guided.build_adapted(kind, tmp_path_factory.mktemp(kind), backends=("onnxruntime", "openvino")))

    return build


@pytest.mark.skipif(not ALL, reason="DIFFUSEVAE_GOLDEN=all builds experts")
@EACH_BACKEND
@pytest.mark.parametrize(("kind", "graph", "expert"), EXPERTS)
def test_experts_equal_the_reference(
    backend: str, kind: str, graph: str, expert: str, experts: Callable[[str], Bundle]
) -> None:
    """The gradient of each, and its logits by their entropy."""
    arrays, opened = golden.expected(guided.EXPERTS), experts(kind)
    found = LOADERS[backend](opened.read_graph(graph))({"x": arrays["x_T"], "label": arrays["y"]})
    g, logits = arrays[f"{expert}_g"], arrays[f"{expert}_logits"]
    np.testing.assert_allclose(found["g"], g, rtol=0, atol=5e-6 * np.abs(g).max())
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(found["entropy"], -(np.exp(log_p) * log_p).sum(1), rtol=0, atol=5e-6)


@pytest.mark.skipif(not ALL, reason="DIFFUSEVAE_GOLDEN=all builds experts")
def test_what_a_bundle_of_experts_records(experts: Callable[[str], Bundle]) -> None:
    manifest = experts("experts").manifest
    assert [(guide.timesteps, guide.classes, guide.rows) for guide in manifest.pipeline.guides] == [
        ((0, 500), 5, None), ((500, 999), 5, None),
    ]  # fmt: skip
    assert manifest.guide is not None
    assert manifest.guide.scale == 7.5
    files = [entry["file"] for entry in manifest.architecture["guides"]]
    assert files == ["experts.pth", "experts_0.pt", "experts_1.pt"]
    assert manifest.source.other_file == files[0]
    arrays, chain = golden.expected(guided.EXPERTS), guided.EXPERT_CHAINS[0]
    used = [guide_of(manifest.pipeline.guides, t) for t in arrays[f"{chain}_timesteps"][::-1].tolist()]
    assert used == arrays[f"{chain}_expert"].tolist()
    assert set(used) == {0, 1}
