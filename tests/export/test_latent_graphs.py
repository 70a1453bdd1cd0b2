"""The graphs of latent diffusion as files that ONNX Runtime and OpenVINO run at several batch sizes, and in half."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from export.families.latent.graphs import roles
from export.graphs.onnx_export import export_onnx
from export.graphs.parity import measure, relative_error
from export.graphs.roles import Role, example
from export.models.latent import first_stage
from export.models.latent.conditioners import Rescaler, conditioner
from export.models.latent.first_stage import FirstStage, Quantiser
from export.models.latent.spec import (
    FirstStageSpec,
    InpaintConditionerSpec,
    LatentSpec,
    RescalerConditionerSpec,
    TokenConditionerSpec,
)
from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import OpenAIUNet
from export.precision import BOUND, HalfOptions, half_role, half_roles
from tests import latent_models

VQ = FirstStageSpec(3, 3, 32, (1, 1), 1, (), 8, z_channels=2, embed_dim=3, codes=40)
KL = replace(VQ, channel_mult=(1,), codes=None)
PLAIN = OpenAIUNetSpec(7, 3, 32, (1, 1), 1, (), 2, None, scale_shift=True, resample_blocks=True)
CROSSED = OpenAIUNetSpec(3, 3, 32, (1,), 1, (), None, 16, context_dim=8)
SPECS = {
    "inpaint": LatentSpec(PLAIN, VQ, InpaintConditionerSpec(VQ), (3, 4, 4), "eps", 1.0),
    "text": LatentSpec(CROSSED, KL, TokenConditionerSpec(11, 5, 8, 1), (3, 4, 4), "v", 0.5),
    "semantic": LatentSpec(replace(PLAIN, in_channels=5), VQ, RescalerConditionerSpec(6, 1, 2), (3, 4, 4), "eps", 1.0),
}
CODED = ["timestep_table", "denoiser", "codebook", "first_stage_decoder"]  # of VQ
NAMES = {
    "inpaint": ["first_stage_encoder", "conditioner", *CODED, "composite"],
    "text": ["first_stage_encoder", "conditioner", "keys_values", "timestep_table", "denoiser", "first_stage_decoder"],
    "semantic": ["first_stage_encoder", "conditioner", *CODED],
}
EXPORTED = [("inpaint", "codebook"), ("inpaint", "composite"), ("text", "denoiser")]  # export takes seconds


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, Role]]:
    """The roles of models so small that the export of one takes seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return {name: _roles(spec) for name, spec in SPECS.items()}


def _roles(spec: LatentSpec) -> dict[str, Role]:
    assert spec.conditioner is not None
    condition = conditioner(spec.conditioner)
    assert condition is not None
    if isinstance(condition, Rescaler):
        torch.nn.init.normal_(condition.channel_mapper.weight)  # empty until it is read
    unet, stage = OpenAIUNet(spec.unet), FirstStage(spec.stage)
    for module in (unet, stage, condition):
        module.eval().requires_grad_(False)
    return roles(spec, unet, stage, condition, T=20)


@pytest.mark.parametrize("model", SPECS)
def test_the_graphs_of_a_model(models, model):
    assert list(models[model]) == NAMES[model]
    for role in models[model].values():
        inputs = example(role, batch=2, steps=3, seed=0)
        sizes = {"batch": 2, "steps": 3}
        for spec, value in zip(role.outputs, role(inputs).values(), strict=True):
            assert list(value.shape) == [sizes.get(d, d) for d in spec.shape]


@pytest.mark.parametrize(("model", "name"), EXPORTED)
def test_runtimes_agree_with_torch(models, model, name, monkeypatch):
    monkeypatch.setattr(first_stage, "SEARCHED", 16 * 12)  # the codebook in four parts, the last one shorter
    role = models[model][name]
    errors = measure(role, export_onnx(role), ["onnxruntime", "openvino"])
    assert max(errors.values()) <= 1e-5


@pytest.mark.parametrize("turing", [False, True])
@pytest.mark.parametrize("model", SPECS)
def test_half_variants(models, model, turing):
    """Float32 in and out, and as near as half comes; which graphs have one in the ordinary variant is said by `compute`."""
    halves = half_roles(models[model], HalfOptions(turing=turing))
    exact = () if turing else ("timestep_table", "codebook", "composite", *["conditioner"][: model == "semantic"])
    assert [role.name for role in halves] == [name for name in NAMES[model] if name not in exact]
    for half in halves:
        inputs = example(half, batch=2, steps=3, seed=0)
        for found, expected in zip(half(inputs).values(), models[model][half.name](inputs).values(), strict=True):
            assert found.dtype == torch.float32
            # Norms of 4 or 16 values each, as only such small models have them, enlarge what half rounds off.
            assert relative_error(found.numpy(), expected.numpy()) <= 2 * BOUND


@pytest.mark.parametrize(
    ("model", "name"),
    [("uncond_kl_std", "denoiser"), ("layout_depth", "denoiser"), ("sr_concat", "first_stage_encoder")],
)
def test_half_variants_of_golden_models(model, name):
    """Those that were farthest off, up to 3.5e-3, while sums along the residual stream were rounded to half."""
    torch.set_num_threads(1)
    whole = roles(latent_models.spec(model), *latent_models.networks(model), T=1000)[name]
    half, inputs = half_role(whole, HalfOptions()), example(whole, batch=2, steps=3, seed=1)
    (found,), (expected,) = half(inputs).values(), whole(inputs).values()
    assert 1e-4 < relative_error(found.numpy(), expected.numpy()) <= BOUND


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that is made meanwhile."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else (made,)
        self.elements = max([self.elements, *(value.numel() for value in tensors if isinstance(value, torch.Tensor))])
        return made


def test_a_large_codebook_is_searched_in_bounded_memory():
    """8192 codes at 64 x 64 positions: the codes of a search in float64, and never more than 256 scores a position."""
    generator = torch.Generator().manual_seed(0)
    quantiser = Quantiser(8192, 3).requires_grad_(False)
    quantiser.embedding.weight.data = torch.randn(8192, 3, generator=generator)
    latent = torch.randn(1, 3, 64, 64, generator=generator)
    with Largest() as largest:
        found = quantiser.indices(latent)
    assert largest.elements == 64 * 64 * 256
    points = latent.flatten(2).transpose(1, 2).double()[:, ::16]
    distances = torch.cdist(points, quantiser.embedding.weight.double())
    assert torch.equal(found.reshape(1, -1)[:, ::16], distances.argmin(dim=-1))
