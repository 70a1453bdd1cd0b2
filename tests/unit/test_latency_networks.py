"""One network by itself in the latency benchmark: made, run by every contestant, the same in diffusers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.latency import duel, networks, peer, report, run
from benchmarks.latency.contestants import RUNNERS
from benchmarks.latency.field import BY_NAME, Task, skip_reason
from engine.processor import Processor, this_processor
from export.families.adm.published import PUBLISHED as ADM
from export.families.adm.published import published as published_adm
from export.families.latent.published import published
from export.models.latent.spec import FirstStageSpec
from export.synthetic import random_network
from tests.latency_tasks import ORT, TORCH


@pytest.fixture
def small_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A first stage's decoder of 8 x 8 latents, as networks.py writes it."""
    stage = FirstStageSpec(3, 3, 32, (1, 2), 1, (), 16, 3, 3, 64)
    config = published("celeba256")
    spec = replace(config.spec, stage=stage, latent=(3, 8, 8))
    monkeypatch.setattr("export.synthetic.published", lambda name: replace(config, spec=spec))
    networks.make("decoder-f4", tmp_path / "decoder-f4")
    return Task(tmp_path / "decoder-f4", None, {}, 3, 1, network=tmp_path / "decoder-f4")


def test_one_network_is_timed_by_itself(small_network: Task) -> None:
    subject = run.subject_of(small_network)
    assert (subject.name, subject.shape) == ("decoder-f4", (3, 16, 16))
    runner = RUNNERS[ORT.kind](ORT, small_network)
    (given,) = subject.inputs(2)
    exact = runner.eps(*given)
    assert duel.relative_error(RUNNERS["engine"](BY_NAME["native bf16"], small_network).eps(*given), exact) < 0.02
    record = duel.Record(1.0, 2.0, 3.0)
    for _ in range(2):
        record.add(runner.run(2, 0, 3))
    row = report.row_of(ORT, 2, record)
    assert (row["step_ms"]["n"], row["total_ms"]["n"], row["rest"]) == (6, 2, None)
    assert duel.relative_error(RUNNERS["torch"](TORCH, small_network).eps(*given), exact) < 1e-5
    here = dict.fromkeys((ORT.backend, "native"), (True, ""))
    plain, int8, int8_all = "plain onnxruntime f32", "native int8", "native int8, all layers"
    asked = [TORCH, ORT, *(BY_NAME[name] for name in (plain, int8, int8_all))]
    reasons = [skip_reason(c, small_network, Processor("none", "x86_64", frozenset()), here) for c in asked]
    assert reasons == [
        None, None, "one network is timed by itself: on the engine's backends, in eager torch and in diffusers",
        "one network by itself has no chains to choose int8 layers on: all layers are another contestant",
        "a decoder has no int8",
    ]  # fmt: skip


def test_a_guided_diffusion_network_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = published_adm("64x64_diffusion")
    unet = replace(known.unet, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), classes=3)
    monkeypatch.setitem(ADM, "64x64_diffusion", replace(known, unet=unet, size=8))
    folder = tmp_path / "64x64_diffusion"
    networks.make(folder.name, folder)
    task = Task(folder, None, {}, 3, 1, network=folder)
    assert networks.Network(folder).is_whole
    (given,) = run.subject_of(task).inputs(2)
    exact = RUNNERS["torch"](TORCH, task).eps(*given)
    assert exact.shape == (2, 3, 8, 8)
    for name, bound in (("onnxruntime f32", 1e-5), ("native bf16", 0.03), ("native int8, all layers", 0.1)):
        contestant = BY_NAME[name]
        assert duel.relative_error(RUNNERS["engine"](contestant, task).eps(*given), exact) < bound
        assert skip_reason(contestant, task, this_processor(), {contestant.backend: (True, "")}) is None


SMALL = {
    "celeba256": {"attention_factors": (2,), "num_head_channels": 16},
    "cin256-v2": {"attention_factors": (2,), "context_dim": 24, "num_heads": 2, "num_head_channels": None},
}


@pytest.mark.parametrize("preset", [*SMALL, "decoder-f4", "decoder-f8"])
def test_diffusers_has_the_same_network(preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="the package diffusers is not installed")
    import torch

    name, graph = networks.NETWORKS[preset]
    config = published(name)
    size = {"channel_mult": (1, 2), "num_res_blocks": 1}
    stage = replace(config.spec.stage, channels=32, resolution=16, attn_resolutions=(), **size)
    unet = replace(config.spec.unet, model_channels=32, **size, **SMALL.get(name, {}))
    spec = replace(config.spec, unet=unet, stage=stage, latent=(config.spec.latent[0], 8, 8))
    for module in ("export.synthetic", "export.families.latent.published"):
        monkeypatch.setattr(f"{module}.published", lambda name: replace(config, spec=spec))
    networks.make(preset, tmp_path / preset)
    network = networks.Network(tmp_path / preset)
    ours = random_network(name, graph)
    theirs, call = peer.peer(name, graph, ours.module)
    values = {k: torch.from_numpy(v) for k, v in {**network.inputs(2, 5), **network.condition(2)}.items()}
    exact = next(iter(ours({spec.name: values[spec.name] for spec in ours.inputs}).values()))
    with torch.inference_mode():
        assert duel.relative_error(call(theirs, values).numpy(), exact.numpy()) < 1e-5
    reason = skip_reason(BY_NAME["diffusers bf16, torch.compile"], Task(tmp_path, None, {}, 1, 1), this_processor(), {})
    assert reason is not None
