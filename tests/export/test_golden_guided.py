"""Guided chains of the reference by rows and autograd: the arithmetic of a guide, entropy-aware scaling, and experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine import kernels
from engine.errors import CheckpointError
from engine.kernels import ROW_FIELDS
from engine.solver.guides import MODES, scaled_gradient
from engine.solver.table import build_step_table
from export.experts import classifier_of, experts, folded
from export.families.adm import recognise
from export.guides import Guide, OwnGuide
from tests import adm_guides as guided
from tests import adm_models as golden

K_G = ROW_FIELDS.index("k_g")
Gradient = Callable[[torch.Tensor, torch.Tensor, int, float], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def gradient(classifier: nn.Module, x: torch.Tensor, label: torch.Tensor, *row: torch.Tensor) -> tuple[np.ndarray, ...]:
    """g and entropy by autograd: their recording is tests/export/test_guide_graphs.py's."""
    unrecorded = Guide.__new__(Guide)
    unrecorded.__dict__["classifier"] = [classifier.requires_grad_(False)]
    return tuple(part.numpy() for part in unrecorded.by_autograd(x, label, *row))


def check_chain(model: str, folder: str, chain: str, gradient_at: Gradient) -> None:
    """A chain of the model with what gradient_at(x, label, timestep, what networks are given for it) says."""
    found = recognise(golden.held(model), None, "ema", golden.said(model))
    network, of, options = found.network(), found.architecture, guided.options(folder, chain)
    setting = golden.setting(folder, chain)
    table = build_step_table(of.schedule.schedule(), **setting, guide_scale=options["guide_scale"])
    x, label = options["x_T"].copy(), torch.from_numpy(options["label"])
    labels = None if of.unet.classes is None else label
    for i, (t, row) in enumerate(zip(table.timesteps, table.rows, strict=True)):
        time, at = float(t) * (1000 / of.schedule.T if of.rescale else 1.0), torch.from_numpy(x.copy())
        with torch.no_grad():
            halves = network(at, torch.full((2,), time), labels=labels).chunk(2, dim=1)
        e, v = (half.contiguous().numpy() for half in halves)
        g, entropy = gradient_at(at, label, int(t), time)
        if f"{chain}_entropy" in golden.expected(folder):
            np.testing.assert_allclose(entropy, golden.expected(folder)[f"{chain}_entropy"][i], rtol=2e-4, atol=1e-6)
        assert row[K_G] != 0, "the last row is guided too"
        g = scaled_gradient(row, g, v, options.get("guide_mode", MODES[0]), entropy, 5, lambda x=x: x)
        assert kernels.update(row, x, e, g=g, v=v, noise=options["noise"][i])
        if i in golden.states(folder, chain):
            expected, limit = golden.states(folder, chain)[i], golden.tolerance(folder, chain)
            np.testing.assert_allclose(x, expected, rtol=0, atol=limit, err_msg=f"row {i}")


@pytest.mark.parametrize(("folder", "chain"), guided.CHAINS)
def test_guided_chains_are_the_references(folder: str, chain: str) -> None:
    model, classifier, scale = guided.case(folder, chain)
    network = guided.network(classifier, scale)

    def at(x: torch.Tensor, label: torch.Tensor, t: int, time: float) -> Any:
        return gradient(network, x, label, network.timestep_rows(torch.tensor([time])))

    check_chain(model, folder, chain, at)


# ---- experts ---------------------------------------------------------------------------------------


def own_experts() -> tuple[OwnGuide, ...]:
    return experts(guided.expert_base(), guided.adapters(), T=1000)


def expert_of(guides: tuple[OwnGuide, ...], t: int) -> int:
    return next(i for i, guide in enumerate(guides) if guide.timesteps[0] <= t <= guide.timesteps[1])


def test_the_reference_s_experts() -> None:
    """What is added to linear layers has no alpha / r; a boundary belongs to the lower expert."""
    arrays = golden.expected(guided.EXPERTS)
    x, label = torch.from_numpy(arrays["x_T"]), torch.from_numpy(arrays["y"])
    guides = own_experts()
    vit = classifier_of(folded(guided.expert_base("vit_expert"), guided.adapters("vit_expert")[0]), heads=2)
    for name, network in (("expert0", guides[0].classifier), ("expert1", guides[1].classifier), ("vit", vit)):
        with torch.no_grad():
            logits = network(x).numpy()
        np.testing.assert_allclose(logits, arrays[f"{name}_logits"], rtol=0, atol=1e-5 * np.abs(logits).max(), err_msg=name)
        g, _ = gradient(network, x, label)
        np.testing.assert_allclose(g, arrays[f"{name}_g"], rtol=0, atol=2e-5 * np.abs(g).max(), err_msg=name)
    assert [expert_of(guides, t) for t in arrays["boundary_t"].tolist()] == arrays["boundary_expert"].tolist()
    assert [(guide.classes, guide.timesteps) for guide in guides] == [(5, (0, 500)), (5, (500, 999))]


@pytest.mark.parametrize("chain", guided.EXPERT_CHAINS)
def test_chains_that_experts_guide(chain: str) -> None:
    guides, used = own_experts(), []

    def at(x: torch.Tensor, label: torch.Tensor, t: int, time: float) -> Any:
        used.append(expert_of(guides, t))
        return gradient(guides[used[-1]].classifier, x, label)

    check_chain(guided.EXPERTS, guided.EXPERTS, chain, at)
    recorded = golden.expected(guided.EXPERTS)[f"{chain}_expert"].tolist()
    assert used == recorded or used == recorded[::-1]
    assert len(set(used)) == 2


def test_an_adapter_of_another_base_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"found blocks\.0\..*, which has no blocks"):
        folded(guided.expert_base(), {"deit.classifier.blocks.0.norm1.bias": torch.zeros(32)})
    with pytest.raises(CheckpointError, match="neither torchvision's ResNet of bottlenecks nor timm's ViT"):
        classifier_of({"conv1.weight": torch.zeros(8, 3, 7, 7)})
