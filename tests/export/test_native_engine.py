"""Weights are packed as the engine reads them, layers refused by name, and int8 layers chosen by what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, ExportError
from export.families.base import Model
from export.families.diffusevae.graphs import roles
from export.families.diffusevae.pipeline import inputs, pipeline
from export.graphs.roles import Role, tensor
from export.models.unet import UNet, UNetSpec
from export.native import measure, pack
from export.native.builder import lower
from export.native.int8 import Layer, Unseen, _fill, choose_layers, int8_error, parse_budget
from export.native.operands import eligible
from export.native.program import Assembler, Value
from export.native.scales import choose_scales, evaluate, in_int8, of_range, weight_scales
from export.native.trajectory import States, trajectory_states
from export.native.unet import lower_denoiser
from export.read.schedule import linear
from tests.native_models import NEEDS_NATIVE

SPEC = UNetSpec("openai", 8, 6, 3, 32, (1, 2), 1, (1,), 2)


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(SPEC).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def role(unet: UNet) -> Role:
    return roles(unet, None, 10)["denoiser"]


@pytest.fixture(scope="module")
def states(unet: UNet) -> States:
    generator = torch.Generator().manual_seed(1)
    x, cond = (torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2))
    row = torch.randn(4, unet.row_width, generator=generator)
    return States({"x": x, "cond": cond, "row": row}, (9, 6, 3, 0))


# ---- packing ---------------------------------------------------------------------------------------


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([0.0, -1.5, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3e38, 1e-40], np.float32)
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(pack.bf16(values), wanted)


def test_bf16_lies_in_tiles_by_block_and_tap() -> None:
    weight = np.random.default_rng(0).integers(-100, 100, (20, 48 + 40, 9)).astype(np.float32)  # exact in bf16
    packed = pack.pack_bf16(weight, [48, 40], 32)
    assert packed.shape == (2, 4, 9, 16, 16, 2)
    found = (packed.astype(np.uint32) << 16).view(np.float32)
    where = [*range(48), *range(64, 104)]  # each source begins a block of its own
    for o, c, t in [(0, 0, 0), (17, 47, 8), (19, 48, 3), (3, 87, 5), (16, 33, 1)]:
        block, inside = divmod(where[c], 32)
        assert found[o // 16, block, t, inside // 2, o % 16, inside % 2] == weight[o, c, t]
    assert found.sum() == weight.sum(), "padding is zero"


def test_int8_lies_in_pairs_of_blocks() -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (16, 96, 9)).astype(np.int8)
    packed = pack.pack_int8(weight, [96], 32)
    assert packed.shape == (2, 2, 9, 16, 16, 4), "three blocks are two pairs"
    for o, c, t in [(0, 0, 0), (15, 63, 8), (7, 64, 4), (3, 95, 2)]:
        pair, inside = divmod(c, 64)
        assert packed[0, pair, t, inside // 4, o, inside % 4] == weight[o, c, t]
    assert packed.sum(dtype=np.int64) == weight.sum(dtype=np.int64)


def test_a_doubled_convolution_is_four_small_ones() -> None:
    seeded = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 5, 4, 6, generator=seeded), torch.randn(7, 5, 3, 3, generator=seeded)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)
    for phase, folded in enumerate(pack.fold_doubling(weight.numpy())):
        py, px = divmod(phase, 2)
        padded = F.pad(x, (1 - px, px, 1 - py, py))
        found = F.conv2d(padded, torch.from_numpy(folded).reshape(7, 5, 2, 2))
        assert (found - wanted[:, :, py::2, px::2]).abs().max() <= 2e-5  # sums of 45 products of unit normals


def test_rows_of_a_matrix_lie_by_sixteen_outputs() -> None:
    weight = np.arange(20 * 3, dtype=np.float32).reshape(20, 3)
    packed = pack.pack_linear(weight)
    assert packed.shape == (2, 3, 16)
    assert packed[1, 2, 3] == weight[19, 2]
    assert not packed[1, :, 4:].any()


# ---- what cannot be expressed ----------------------------------------------------------------------

REFUSED = {
    "kernel": nn.Conv2d(32, 32, 5, padding=2),
    "stride": nn.Conv2d(32, 32, 3, padding=1, stride=3),
    "padding": nn.Conv2d(32, 32, 3, padding=0),
    "groups": nn.Conv2d(32, 32, 3, padding=1, groups=2),
    "dilation": nn.Conv2d(32, 32, 3, padding=2, dilation=2),
    "reflection": nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_convolution_that_the_engine_lacks_is_refused_by_name(case: str) -> None:
    with pytest.raises(ExportError, match=r"layer encoder\.3\.conv: found Conv2d.*expected a 1 x 1 or 3 x 3"):
        Assembler("denoiser", "bf16").conv("encoder.3.conv", REFUSED[case], [Value("h", 32, 8, 8)])


def test_odd_sizes_and_weights_that_are_not_finite_are_refused() -> None:
    layer = nn.Conv2d(32, 32, 3, padding=1, stride=2)
    with pytest.raises(ExportError, match=r"layer down: found .* of 7 x 7"):
        Assembler("denoiser", "bf16").conv("down", layer, [Value("h", 32, 7, 7)])
    with pytest.raises(ExportError, match="layer pool: found pooling of 7 x 7 by 2"):
        Assembler("vae_encoder", "bf16").pool("pool", Value("h", 32, 7, 7), 2)
    layer.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ExportError, match="layer down: found NaN or infinity in its weights"):
        Assembler("denoiser", "bf16").conv("down", layer, [Value("h", 32, 8, 8)])


def test_a_module_that_the_engine_has_no_operations_for() -> None:
    x = tensor("x", ("batch", 3, 8, 8))
    with pytest.raises(ExportError, match=r"graph first_stage: found a Identity, expected a network that"):
        lower(Role("first_stage", nn.Identity(), (x,), (x,)))


def test_the_same_model_gives_the_same_bytes(role: Role) -> None:
    first, second = lower_denoiser(role), lower_denoiser(role)
    assert first == second
    names = [op["name"] for op in json.loads(first.program)["ops"]]
    assert names[:3] == ["input", "stem", "encoder.0.res.conv1"]
    assert len(set(names)) == len(names)


# ---- int8 ------------------------------------------------------------------------------------------


def test_a_scale_holds_zero_exactly_and_spans_the_range() -> None:
    scale = of_range(-0.2785, 6.0, "min-max")
    x = torch.tensor([0.0, -0.2785, 6.0, 100.0])
    found = scale.rounded(x)
    assert found[0] == 0
    assert abs(found[1] + 0.2785) <= scale.scale
    assert found[2] == found[3]
    assert abs(found[2] - 6.0) <= scale.scale


def test_weights_have_a_scale_an_output() -> None:
    weight = np.array([[1.0, -2.0], [0.0, 0.0], [0.5, 0.1]], np.float32)
    np.testing.assert_allclose(weight_scales(weight), [2 / 127, 1.0, 0.5 / 127], rtol=1e-6)


def test_simulation_leaves_the_network_as_it_was(role: Role, states: States) -> None:
    layers, before = eligible(role), evaluate(role, states)
    scales = {name: of_range(-0.3, 4.0, "x") for name in layers}
    with in_int8(layers, scales):
        assert not torch.equal(evaluate(role, states), before)
    assert torch.equal(evaluate(role, states), before)


def test_every_residual_convolution_is_eligible_and_nothing_else(unet: UNet, role: Role) -> None:
    names = set(eligible(role))
    assert len(names) == 2 * len(unet.stages())
    assert all(name.endswith((".res.conv1", ".res.conv2")) for name in names)


def test_scales_are_chosen_by_the_layers_output(role: Role, states: States) -> None:
    scales = choose_scales(role, states)
    assert set(scales) == set(eligible(role))
    assert {scale.rule for scale in scales.values()} <= {"min-max", "percentile 99.99", "percentile 99.9", "least squares"}


def test_layers_are_taken_cheapest_error_for_time_first() -> None:
    scale = of_range(0, 1, "x")
    layers = [Layer("costly", scale, 0.05, 1.0), Layer("cheap", scale, 0.01, 1.0), Layer("quick", scale, 0.02, 100.0)]
    assert _fill(layers, math.inf) == ["quick", "cheap", "costly"]
    assert _fill(layers, 0.01**2 + 0.02**2 + 1e-9) == ["quick", "cheap"]
    assert _fill(layers, 0.0) == []


@pytest.mark.parametrize(("budget", "most"), [("all", 1.0), (0.02, 0.02), (1e-6, 0.0)])
def test_the_budget_is_kept_by_the_sum(role: Role, states: States, budget: str | float, most: float) -> None:
    seen: list[str] = []
    choice = choose_layers(
        role, states, evaluate(role, states), budget, bf16=0.0, progress=lambda names: seen.extend(names) or names
    )
    assert set(seen) == set(eligible(role))
    assert choice.simulated <= most
    assert len(choice.scales) == (len(choice.layers) if budget == "all" else len(choice.scales))
    assert bool(choice.scales) == (most > 0)
    assert len(choice.lines()) == len(choice.layers) + 1
    assert json.loads(json.dumps(choice.record()))["timesteps"] == [9, 6, 3, 0]


def test_layers_that_fail_where_nothing_was_calibrated_are_given_back(role: Role, states: States) -> None:
    exact = evaluate(role, states)
    far = States({name: 3 * value for name, value in states.inputs.items()}, states.timesteps)
    answers = evaluate(role, far)
    free = choose_layers(role, states, exact, 0.5, 0.0)
    error = int8_error(role, far, free.scales, answers)
    held = choose_layers(role, states, exact, 0.5, 0.0, unseen=Unseen(far, answers, error / 2))
    assert 0 < len(held.scales) < len(free.scales)
    assert set(held.scales) < set(free.scales)
    assert int8_error(role, far, held.scales, answers) <= error / 2
    assert held.simulated < free.simulated
    whole = choose_layers(role, states, exact, "all", 0.0, unseen=Unseen(far, answers, error / 2))
    assert len(whole.scales) == len(whole.layers), "all is all"


def test_states_come_from_the_models_own_chains() -> None:
    torch.manual_seed(0)
    spec = UNetSpec("openai", 4, 3, 3, 32, (1,), 1, (), 2)
    unet = UNet(spec).eval().requires_grad_(False)
    defaults = {"steps": 4, "method": "ddpm", "spacing": "truncated", "t_start": None, "guidance": 0.0}
    model = Model(
        "diffusevae", "tiny", roles(unet, None, 20), inputs(spec, None), pipeline(spec, None, "eps"),
        linear(1e-4, 0.02, 20), "eps", "fixedlarge", defaults,
    )  # fmt: skip
    first, second = trajectory_states(model), trajectory_states(model)
    assert set(first.inputs) == {"x", "row"}
    assert first.timesteps == second.timesteps
    assert len(first) == len(first.inputs["x"]) == 24
    assert set(first.timesteps[:12]) <= {3, 2, 1, 0}, "of the recorded setting"
    assert max(first.timesteps[12:]) > 3, "of ten plain steps over all of T"
    assert all(torch.equal(first.inputs[name], second.inputs[name]) for name in first.inputs)
    assert len(torch.unique(first.inputs["x"].flatten(1), dim=0)) > 6, "several samples at several rows"


def test_budgets_are_words_or_errors() -> None:
    assert parse_budget("all") == "all"
    assert parse_budget("0.03") == 0.03
    for wrong in ("frei", "0", "-1", "nan", "1.5", ""):
        with pytest.raises(ArgumentError, match="--int8-budget: found"):
            parse_budget(wrong)
    with pytest.raises(ArgumentError, match=r"Did you mean 'free'\?"):
        parse_budget("fre")


@NEEDS_NATIVE
def test_the_manifest_records_what_was_measured(native_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(native_bundle("form1", "bf16", "int8"))
    found = {engine.name: engine for engine in bundle.manifest.engines}
    assert set(found) == {
        "native f32 timestep_table", "native bf16 vae_encoder", "native bf16 vae_decoder", "native bf16 denoiser",
        "native int8 denoiser",
    }  # fmt: skip
    for engine in found.values():
        assert engine.record["relative_error"] <= engine.record["bound"]
        assert engine.source_sha256 == bundle.spec(engine.graph).sha256
    assert found["native bf16 denoiser"].record["relative_error"] <= 0.015
    assert found["native f32 timestep_table"].record["relative_error"] <= 1e-5
    calibration = found["native int8 denoiser"].record["calibration"]
    assert len(calibration["timesteps"]) == 4
    assert all(layer["int8"] for layer in calibration["layers"]), "budget 'all'"
    assert calibration["int8_error"] <= 0.1


class Constant(nn.Module):
    def forward(self) -> torch.Tensor:
        return torch.full((1, 3, 2, 2), 0.01)


def test_an_image_that_is_gray_all_over_is_measured_over_its_range(monkeypatch):
    """In [-1, 1] it is all but 0, so that a bf16 error of its pixels would be many times itself."""
    graph = MagicMock(isa="avx2", return_value={"image": np.full((1, 3, 2, 2), 0.018, np.float32)})
    graph.__enter__.return_value = graph
    monkeypatch.setattr(measure, "open_assembled", lambda *_: graph)
    for bounds, error in (((-1.0, 1.0), 0.008 / 1.01), (None, 0.8)):
        role = Role("decoder", Constant(), (), (tensor("image", ("batch", 3, 2, 2), range=bounds),))
        record = measure.measure_program(role, MagicMock(), "bf16", lambda *_: {}, bound=1.0)
        assert record["relative_error"] == pytest.approx(error, rel=1e-3)
