"""int8 behind the norms of attention and transformers: what is eligible, its ranges, the engine against the simulation."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import ExportError
from engine.solver.noise import resolve_seeds
from export.build import recognise
from export.families.latent.graphs import roles
from export.graphs.roles import Role, tensor
from export.models.openai.unet import TransformerBlock
from export.native import trajectory
from export.native.latent import lower_denoiser, pointwise
from export.native.measure import open_assembled
from export.native.operands import Products, eligible
from export.native.program import Assembler, Norm
from export.native.scales import Ranges, Scale, evaluate, in_int8, of_range, rounded_weight
from export.native.trajectory import States
from tests import latent_models
from tests.native_models import NEEDS_NATIVE, PATHS


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one


BLOCK = ("attn1.qkv", "attn2.to_q", "ff.net.0.proj")  # of a transformer, in the order of running


def denoiser(model: str) -> Role:
    spec, networks = latent_models.spec(model), latent_models.networks(model)
    return roles(spec, *networks, T=latent_models.config(model)["T"])["denoiser"]


def behind_norms(layers: Mapping[str, Products]) -> dict[str, str]:
    """{kind: one operation of it}, of those of no residual block."""
    kind = re.compile(r"\.(in_layers\.2|out_layers\.3|attn1\.qkv|attn2\.to_q|ff\.net\.0\.proj|proj_in|qkv)$")
    return {found[1]: name for name in layers if (found := kind.search(name)) and "_layers" not in found[1]}


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("text_bert_cfg", {"proj_in", *BLOCK}),
        ("class_crossattn_cfg", {"proj_in", *BLOCK} - {"attn2.to_q"}),  # a class is one token: no queries
        ("uncond_kl_std", {"qkv"}),
    ],
)
def test_what_stands_behind_a_norm_is_eligible_under_the_operations_name(model: str, kinds: set[str]) -> None:
    role = denoiser(model)
    assert set(behind_norms(eligible(role))) == kinds
    program = lower_denoiser(role, "int8", {name: of_range(-4.0, 4.0, "x") for name in eligible(role)})
    lowered = [op["name"] for op in json.loads(program.program)["ops"] if op.get("int8") is not None]
    assert lowered == list(eligible(role)), "each, in the order of running"


def test_queries_keys_and_values_share_their_operand() -> None:
    role = denoiser("text_bert_cfg")
    block = next(module for module in role.module.modules() if isinstance(module, TransformerBlock))
    (products,) = (products for products in eligible(role).values() if block.attn1.to_q in products)
    assert products == (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)


def test_simulation_leaves_every_kind_of_layer_as_it_was() -> None:
    for model in ("text_bert_cfg", "uncond_kl_std"):
        role = denoiser(model)
        generator = torch.Generator().manual_seed(0)
        drawn = {spec.name: torch.randn(1, *map(int, spec.shape[1:]), generator=generator) for spec in role.inputs}
        states, layers = States(drawn, (0,)), eligible(role)
        with torch.inference_mode():
            before = evaluate(role, states)
            for name in behind_norms(layers).values():
                with in_int8(layers, {name: of_range(-4.0, 4.0, "x")}):
                    assert not torch.equal(evaluate(role, states), before), name
            assert torch.equal(evaluate(role, states), before)


# ---- ranges ----------------------------------------------------------------------------------------


def candidates(values: torch.Tensor) -> dict[str, Scale]:
    ranges = Ranges()
    ranges.add(values)
    return {scale.rule: scale for scale in ranges.candidates()}


def ends(scale: Scale) -> tuple[float, float]:
    return -scale.zero * scale.scale, (255 - scale.zero) * scale.scale


def test_a_tail_is_cut_at_either_end() -> None:
    values = torch.randn(1, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    values[0, 0, 0, 0], values[0, 0, 0, 1] = -40.0, 20.0
    found = candidates(values)
    assert ends(found["min-max"]) == pytest.approx((-40.0, 20.0), abs=0.3)
    low, high = ends(found["percentile 99.9"])
    assert -4 < low < -2.5, "a normal's thousandth lies at -3.09"
    assert 2.5 < high < 4
    low, high = ends(found["least squares"])
    assert low == pytest.approx(-12.0, abs=0.3), "the least fraction that is tried"
    assert high == pytest.approx(6.0, abs=0.3)


def test_what_silu_made_is_cut_above_alone() -> None:
    values = nn.functional.silu(torch.randn(1, 32, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert {round(ends(scale)[0], 1) for scale in candidates(values).values()} == {-0.3}


# ---- calibration -----------------------------------------------------------------------------------


def test_a_model_with_tokens_is_calibrated_on_its_own_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory, "STATES", 4)
    monkeypatch.setattr(trajectory, "LANES", 1)
    model = recognise(latent_models.request_of("text_bert_cfg", tmp_path)).load()
    (tokens,) = (spec for spec in model.step.inputs if spec.name == "keys_values")
    states = trajectory.trajectory_states(model)
    assert states.inputs["keys_values"].shape == (4, *tokens.shape[1:]), "of texts as long as the manifest says"
    assert set(states.inputs) == {"x", "keys_values", "row"}
    assert len(states) == 4
    free = [{**spec, "shape": ["batch", "length"], "null": 0} for spec in model.inputs]
    with pytest.raises(ExportError, match=r"the input tokens of free shape \['batch', 'length'\], expected fixed dim"):
        trajectory._inputs(dataclasses.replace(model, inputs=free), resolve_seeds(0, 1))


# ---- the engine against the simulation -------------------------------------------------------------


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("norm", [nn.LayerNorm(80), nn.GroupNorm(4, 80)], ids=["LayerNorm", "GroupNorm"])
def test_the_engine_computes_what_is_simulated(norm: nn.Module, path: str, force_isa: Callable[[str], str]) -> None:
    """One product behind a norm, from a map that is exact in bf16: what differs is the order of float32 sums.

    bf16 would be off by 2e-3, another rounding of the operand by more.
    """
    force_isa(path)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 80, 5, 7, generator=generator).bfloat16().float()
    weight, bias = torch.randn(48, 80, generator=generator), torch.randn(48, generator=generator)
    norm.weight.data = 1 + torch.rand(80, generator=generator)
    norm.bias.data = torch.rand(80, generator=generator) - 2  # most of the range lies below zero
    scale = of_range(-7.0, 3.0, "x")

    program = Assembler("denoiser", "int8")
    program.port("x", "map", 80, 5, 7)
    program.port("eps", "map", 48, 5, 7, output=True)
    given = program.input("input", ["x"], 80, 5, 7)
    h = program.conv("exact", pointwise(torch.eye(80), None), [given])  # which gathers a GroupNorm's sums
    program.conv("product", pointwise(weight, bias), [h], norm=Norm(norm), int8=scale, port="eps")

    by_pixel = isinstance(norm, nn.LayerNorm)
    normed = norm(x.movedim(1, -1)).movedim(-1, 1) if by_pixel else norm(x)
    wanted = nn.functional.conv2d(scale.rounded(normed.detach()), rounded_weight(weight)[:, :, None, None], bias)
    role = Role("denoiser", nn.Identity(), (tensor("x", ("batch", 80, 5, 7)),), (tensor("eps", ("batch", 48, 5, 7)),))
    with open_assembled(role, program.finish(), "int8") as graph:
        found = graph(x=x.numpy())["eps"]
    assert np.linalg.norm(found - wanted.numpy()) < 1e-4 * np.linalg.norm(wanted.numpy())
