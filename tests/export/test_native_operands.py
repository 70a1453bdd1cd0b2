"""int8 in attention blocks and transformers: what is eligible, its ranges, the engine against the simulation."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from export.native.program import Assembler, Norm, Value
from export.native.scales import Ranges, Scale, choose_scales, evaluate, in_int8, of_range, rounded_weight
from export.native.trajectory import States
from tests import latent_models
from tests.native_models import NEEDS_NATIVE, PATHS


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one


BLOCK = ("attn1.qkv", "attn2.to_q", "ff.net.0.proj", "ff.net.2")  # of a transformer, in the order of running


def denoiser(model: str) -> Role:
    spec, networks = latent_models.spec(model), latent_models.networks(model)
    return roles(spec, *networks, T=latent_models.config(model)["T"])["denoiser"]


def drawn(role: Role) -> States:
    """A state of normal numbers."""
    generator = torch.Generator().manual_seed(0)
    given = {spec.name: torch.randn(1, *map(int, spec.shape[1:]), generator=generator) for spec in role.inputs}
    return States(given, (0,))


def kinds_of(layers: Mapping[str, Products]) -> dict[str, str]:
    """{kind: one operation of it}, of those of no residual block."""
    kind = re.compile(r"\d+\.((?:attn\d|ff)\..+|[a-z_]+)$")
    return {found[1]: name for name in layers if "_layers." not in name and (found := kind.search(name))}


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("text_bert_cfg", {"proj_in", *BLOCK}),
        ("class_crossattn_cfg", {"proj_in", *BLOCK} - {"attn2.to_q"}),  # a class is one token: no queries
        ("uncond_kl_std", {"qkv"}),
    ],
)
def test_products_are_eligible_under_the_operations_name(model: str, kinds: set[str]) -> None:
    role = denoiser(model)
    assert set(kinds_of(eligible(role))) == kinds
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
        states, layers = drawn(role), eligible(role)
        with torch.inference_mode():
            before = evaluate(role, states)
            for name in kinds_of(layers).values():
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


# ---- channels that a GEGLU makes large ---------------------------------------------------------------


def test_channels_are_divided_by_what_evens_them_out() -> None:
    ranges, generator = Ranges(4), torch.Generator().manual_seed(0)
    for _ in range(2):
        ranges.add(torch.randn(2, 300, 4, generator=generator) * torch.tensor([1.0, 16.0, 0.0, 1.0]))
    weight = np.array([[1.0, 1.0, 1.0, 0.0], [-0.5, -1.0, 0.1, 0.0]], np.float32)
    smooth = ranges.smooth(weight)
    assert smooth[1] / smooth[0] == pytest.approx(16**0.75, rel=0.2)
    assert smooth[2:] == (1.0, 1.0), "of what is always 0, and of what nobody reads"
    plain, even = (ranges.candidates(by)[0] for by in ((), smooth))
    assert plain.smooth == ()
    assert (even.smooth, even.rule) == (smooth, "min-max, smoothed")
    assert ends(even)[1] - ends(even)[0] < 0.4 * (ends(plain)[1] - ends(plain)[0])
    wild = Ranges(2)
    wild.add(torch.tensor([[1e-8, 1e8]]))
    assert wild.smooth(np.ones((1, 2), np.float32)) == (1 / 64, 64.0)


def test_division_loses_nothing_but_levels() -> None:
    generator, by = torch.Generator().manual_seed(0), torch.tensor([4.0, 0.25, 3.0])
    x, weight = torch.rand(5, 3, generator=generator) * by, torch.randn(7, 3, generator=generator)
    scale = of_range(0.0, 1.0, "x", tuple(by.tolist()))
    assert ((scale.rounded(x) - x).abs() <= by * 0.51 / 255).all(), "255 levels of every channel's own range"
    off, most = (rounded_weight(weight, scale.smooth) - weight).abs() * by, (weight.abs() * by).amax(dim=1, keepdim=True)
    assert (off <= most * 0.51 / 127).all()


def test_a_geglu_with_a_large_channel_is_divided() -> None:
    role = denoiser("text_bert_cfg")
    name, block = next((n, m) for n, m in role.module.unet.named_modules() if isinstance(m, TransformerBlock))
    kept = block.ff.net[0].proj.weight.clone()
    block.ff.net[0].proj.weight[5] *= 40
    try:
        scales = choose_scales(role, drawn(role))
    finally:
        block.ff.net[0].proj.weight.copy_(kept)
    found = scales[f"{name}.ff.net.2"]
    assert found.rule.endswith(", smoothed")
    assert found.smooth[5] == max(found.smooth)
    assert all(scale.smooth == () for other, scale in scales.items() if not other.endswith(".ff.net.2"))


def test_what_is_divided_before_is_multiplied_behind() -> None:
    """A network whose channels are large by powers of two, once divided, is the network where they are not."""
    role = denoiser("text_bert_cfg")
    name, block = next((n, m) for n, m in role.module.unet.named_modules() if isinstance(m, TransformerBlock))
    first, second, operation = block.ff.net[0].proj, block.ff.net[2], f"{name}.ff.net.2"
    by = torch.tensor([2.0 ** (number % 9 - 4) for number in range(second.in_features)])
    wide = torch.cat([by, torch.ones_like(by)])
    for others in ({}, {f"{name}.ff.net.0.proj": of_range(-4.0, 4.0, "x")}):
        even = lower_denoiser(role, "int8", {operation: of_range(-6.0, 6.0, "x")} | others)
        kept = first.weight, first.bias, second.weight
        changed = first.weight * wide[:, None], first.bias * wide, second.weight / by
        try:
            first.weight, first.bias, second.weight = (nn.Parameter(value, requires_grad=False) for value in changed)
            scales = {operation: of_range(-6.0, 6.0, "x", tuple(by.tolist()))} | others
            assert lower_denoiser(role, "int8", scales) == even
        finally:
            first.weight, first.bias, second.weight = kept


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
        trajectory._inputs(dataclasses.replace(model, inputs=free), resolve_seeds(0, 1), 1)


# ---- the engine against the simulation -------------------------------------------------------------


def compared(
    program: Assembler, operand: Value, x: torch.Tensor, simulated: Callable[[dict[str, np.ndarray]], torch.Tensor],
    scale: Scale, **conv: Any,
) -> float:  # fmt: skip
    """How far a product over `operand` in int8 is from that over `simulated`, which gets all that the program answers."""
    ports = [tensor(str(port["name"]), ("batch", port["channels"], 5, 7)) for port in program.ports]
    generator = torch.Generator().manual_seed(1)
    channels = operand.channels // (2 if conv.get("activation") == "geglu" else 1)
    weight, bias = torch.randn(48, channels, generator=generator), torch.randn(48, generator=generator)
    program.port("eps", "map", 48, 5, 7, output=True)
    program.conv("product", pointwise(weight, bias), [operand], int8=scale, port="eps", **conv)
    role = Role("denoiser", nn.Identity(), tuple(ports[:1]), (*ports[1:], tensor("eps", ("batch", 48, 5, 7))))
    with open_assembled(role, program.finish(), "int8") as graph:
        found = graph(x=x.numpy())
    rounded = scale.rounded(simulated(found).detach().movedim(1, -1)) @ rounded_weight(weight, scale.smooth).T + bias
    wanted = rounded.movedim(-1, 1).numpy()
    return float(np.linalg.norm(found["eps"] - wanted) / np.linalg.norm(wanted))


def exact(channels: int) -> tuple[Assembler, Value, torch.Tensor]:
    """A program whose port x a convolution copied, which gathers a GroupNorm's sums; and values of x, exact in bf16."""
    program = Assembler("denoiser", "int8")
    program.port("x", "map", channels, 5, 7)
    given = program.input("input", ["x"], channels, 5, 7)
    h = program.conv("exact", pointwise(torch.eye(channels), None), [given])
    return program, h, torch.randn(2, channels, 5, 7, generator=torch.Generator().manual_seed(0)).bfloat16().float()


# From a map that is exact in bf16, what differs is the order of float32 sums: 1e-4 of the product at most. bf16 would be off
# by 2e-3, another rounding of the operand by more.


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("norm", [nn.LayerNorm(80), nn.GroupNorm(4, 80)], ids=["LayerNorm", "GroupNorm"])
def test_the_engine_computes_what_is_simulated(norm: nn.Module, path: str, force_isa: Callable[[str], str]) -> None:
    force_isa(path)
    program, h, x = exact(80)
    norm.weight.data = 1 + torch.rand(80, generator=torch.Generator().manual_seed(2))
    norm.bias.data = torch.rand(80, generator=torch.Generator().manual_seed(3)) - 2  # most of the range lies below zero
    normed = norm(x.movedim(1, -1)).movedim(-1, 1) if isinstance(norm, nn.LayerNorm) else norm(x)
    assert compared(program, h, x, lambda _: normed, of_range(-7.0, 3.0, "x"), norm=Norm(norm)) < 1e-4


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("smooth", [(), (0.5, 4.0, 1.0)], ids=["", "smoothed"])
@pytest.mark.parametrize("inner", [64, 96], ids=["whole pairs of blocks", "a half pair"])
def test_what_geglu_makes_is_quantised_in_passing(
    inner: int, smooth: tuple[float, ...], path: str, force_isa: Callable[[str], str]
) -> None:
    force_isa(path)
    program, h, x = exact(2 * inner)
    value, gate = x.chunk(2, dim=1)
    by = tuple(smooth[c % 3] for c in range(inner)) if smooth else ()
    given = torch.cat([value / torch.tensor(by or 1.0)[..., None, None], gate], dim=1)
    gated = value * nn.functional.gelu(gate)
    assert compared(program, h, given, lambda _: gated, of_range(-2.5, 3.0, "x", by), activation="geglu") < 1e-4


@NEEDS_NATIVE
@pytest.mark.parametrize("path", PATHS)
def test_what_attention_wrote_is_quantised(path: str, force_isa: Callable[[str], str]) -> None:
    """From the map in bf16, which a port shows."""
    force_isa(path)
    program, h, x = exact(240)
    seen = program.attention("attention", [h], 2, 0.3)
    program.port("seen", "map", 80, 5, 7, output=True)
    program.conv("shown", pointwise(torch.eye(80), None), [seen], port="seen")
    assert compared(program, seen, x, lambda found: torch.from_numpy(found["seen"]), of_range(-1.2, 1.4, "x")) < 1e-4
