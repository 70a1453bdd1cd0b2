"""Classifier guidance against its reference: from two plain state dicts to images, in every runtime on a CPU.

One of the three kinds in the default run, whose classifier has an adaptive pool and knows rescaled timesteps; with
DIFFUSEVAE_GOLDEN=all those with an attention pool and entropy-aware scaling too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Sampler
from engine.backends.native.backend import Native
from engine.bundle.reader import Bundle
from engine.feeds import noise_feeds, setting_feeds
from export.graphs.extra import GraphOptions
from export.graphs.parity import LOADERS
from tests import adm_guides as guided
from tests import adm_models as golden
from tests.latent_runs import ALL, difference
from tests.native_models import NEEDS_NATIVE
from tests.samplers import EACH_BACKEND

CHAINS = [(folder, chain) for folder, chain in guided.CHAINS if ALL or folder == "guided_adaptive"]
BF16_CHAIN = 3e-2
Bundles = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """bundle(folder, chain): with the whole-sampler graph, and native engines where they can be run; chains of the same two
    networks share one."""
    import torch

    torch.set_num_threads(1)

    @functools.cache
    def build(model: str, classifier: str, which: str | None) -> Path:
        folder, chain = next((f, c) for f, c in CHAINS if key(f, c) == (model, classifier, which))
        backends = ("onnxruntime", "openvino", *(["native"] if Native.available()[0] else []))
        whole, into = GraphOptions(whole_sampler=True), tmp_path_factory.mktemp("guided")
        return guided.build_guided(folder, chain, into, backends=backends, graph_options=whole)

    def key(folder: str, chain: str) -> tuple[str, str, str | None]:
        return (*guided.case(folder, chain)[:2], golden.config(folder)["chains"][chain].get("classifier"))

    return lambda folder, chain: build(*key(folder, chain))


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
    entry = opened.engine("native", "bf16", "guide")
    if entry.runs_on:
        assert entry.runs_on == ("onnxruntime", "openvino")
        assert "native bf16 guide: found a relative error of" in entry.record["why"]
    else:
        assert entry.record["relative_error"] <= 0.04
    with Sampler(opened, "native", "bf16", threads=1) as sampler:
        found = sampler.sample(2, **guided.options(folder, chain)).x
    states = golden.states(folder, chain)
    assert difference(found, states[max(states)]) < BF16_CHAIN


def test_what_a_guided_bundle_records(bundle: Bundles) -> None:
    folder, chain = CHAINS[0]
    manifest = Bundle.open(bundle(folder, chain)).manifest
    (guide,) = manifest.pipeline.guides
    assert (guide.classes, guide.timesteps) == (5, (0, manifest.schedule.T - 1))
    assert manifest.guide is not None
    assert manifest.guide.options == {"guide_scale": 1.0, "guide_mode": "constant", "guide_interval": None}
    assert manifest.source.other_file == f"{guided.case(folder, chain)[1]}.pt"
    assert manifest.graphs["guide"].computes_in("bf16") == "bf16"
