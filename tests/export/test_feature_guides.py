"""Guides through the denoiser itself: recorded, wired, sampled beside autograd, and what is refused. The heads are ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import Sampler
from engine.bundle.reader import Bundle
from engine.errors import ArgumentError, ExportError
from engine.feeds import noise_feeds, setting_feeds
from engine.kernels import ROW_FIELDS
from engine.solver.table import build_step_table
from export.build import Request, build, recognise
from export.families.base import Model
from export.families.diffusevae.graphs import roles
from export.families.diffusevae.pipeline import inputs, pipeline
from export.feature_guides import FeatureGuide, feature_role, with_feature_guide
from export.graphs.extra import GraphOptions
from export.guides import OwnGuide
from export.models.unet import UNet, UNetSpec
from export.models.vae import VAE, VAESpec
from export.read.schedule import linear
from tests.sampler_graphs import OrtSampler

AVATARS = Path(__file__).parents[2] / "examples" / "avatars" / "avatars.ckpt"
LAYERS = ("unet.encoder.0", "unet.encoder.2")
SCALE = 3e3  # of a loss that is small, as is its gradient
GUIDED = {"timesteps": [400, 111, 9], "t_start": 400, "method": "ddim_clipped"}


class Depth(nn.Module):
    """A map of one channel, made of two layers of a network, and how uneven it is: of random weights."""

    def __init__(self, channels: tuple[int, int], factor: int = 2) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(c, 4, 3, padding=1) for c in channels)
        self.last, self.factor = nn.Conv2d(8, 1, 1), factor

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        fine, coarse = features.values()
        coarse = F.interpolate(self.second(coarse), scale_factor=float(self.factor), mode="nearest")
        depth = self.last(F.silu(torch.cat([self.first(fine), coarse], dim=1)))
        return (depth[:, :, 1:] - depth[:, :, :-1]).square().mean(dim=(1, 2, 3))


class OfOne(nn.Module):
    """A loss of one layer by a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        (only,) = features.values()
        return self.function(only)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny(formulation: int | None = None) -> Model:
    torch.manual_seed(0)
    vae_spec = VAESpec(4, "4x1,4d4,4t1,1x1", "1x1,1u4,1t4,4x1", "4:64,1:8", "4:64,1:8")
    conditional = formulation is not None
    spec = UNetSpec("openai", 4, 6 if conditional else 3, 3, 32, (1,), 1, (), 2, 8 if conditional else None, conditional)
    vae = VAE(vae_spec).eval() if conditional else None
    return Model(
        "diffusevae", "tiny", roles(UNet(spec).eval(), vae, 20), inputs(spec, vae_spec if vae else None),
        pipeline(spec, formulation, "eps"), linear(1e-4, 0.02, 20), "eps", "fixedlarge",
        {"steps": 2, "method": "ddim_clipped"},
    )  # fmt: skip


def test_avatars_refiner_from_its_file_to_images(tmp_path: Path) -> None:
    """The guide takes the reconstruction too; a chain is that of autograd through the network at every row."""
    torch.manual_seed(0)
    guide = FeatureGuide(Depth((32, 32)), LAYERS)
    trained = guide.head.last.weight.requires_grad
    whole = GraphOptions(whole_sampler=True)
    made = Request(AVATARS, out=tmp_path / "a.bundle", backends=("onnxruntime",), graph_options=whole, feature_guide=guide)
    path = build(dataclasses.replace(made, guide_scale=0.0)).path  # its recorded method takes no guide
    assert guide.head.last.weight.requires_grad == trained, "the caller's head is as it was"
    bundle = Bundle.open(path)
    (spec,) = bundle.manifest.pipeline.guides
    assert spec.step.inputs == {"x": "x", "cond": "recon", "row": "rows"}
    assert spec.step.outputs == {"g": "g"}
    x_T = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    z = np.zeros((2, *map(int, bundle.manifest.inputs[0].sample)), np.float32)
    with Sampler(bundle, "onnxruntime", "f32", threads=1) as sampler:
        plain, found = (sampler.sample(z=z, x_T=x_T, guide_scale=scale, **GUIDED) for scale in (0.0, SCALE))
        with pytest.raises(ArgumentError, match="entropy"):
            sampler.sample(z=z, x_T=x_T, guide_scale=1.0, guide_mode="entropy", **GUIDED)
    feeds, table = setting_feeds(bundle.manifest, {"guide_scale": SCALE, **GUIDED})
    feeds |= noise_feeds(bundle.manifest, table, np.arange(2, dtype=np.uint64), None, {"z": z}) | {"x_T": x_T}
    composed = OrtSampler(bundle.read_graph("sampler"))(feeds)
    model = recognise(Request(AVATARS)).load()
    exact = by_autograd(model, guide, torch.from_numpy(x_T), torch.from_numpy(composed["recon"]), SCALE)
    assert np.abs(found.x - plain.x).max() > 1e-2, "it does something"
    for x in (found.x, composed["x"]):
        np.testing.assert_allclose(x, exact, rtol=0, atol=1e-4)


def by_autograd(model: Model, guide: FeatureGuide, x_T: torch.Tensor, recon: torch.Tensor, scale: float) -> np.ndarray:
    """The chain GUIDED written out for v prediction without noise."""
    table = build_step_table(
        model.schedule.schedule(), prediction="v", guide_scale=scale, **{**GUIDED, "timesteps": tuple(GUIDED["timesteps"])}
    )
    start, denoiser, seen = table.start, model.step.module, {}
    x = start.k_noise * x_T + start.k_start * recon
    for name in guide.layers:
        dict(denoiser.named_modules())[name].register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    for t, row in zip(table.timesteps, table.rows, strict=True):
        k = {name: float(value) for name, value in zip(ROW_FIELDS, row, strict=True)}
        at = x.detach().requires_grad_(True)
        rows = next(iter(model.roles["timestep_table"]({"timesteps": torch.tensor([int(t)])}).values())).clone()
        e = denoiser(x=at, cond=recon, row=rows)
        (g,) = torch.autograd.grad(-guide.head(dict(seen)).sum(), at)
        x0 = (k["p_x"] * x + k["p_e"] * e.detach()).clamp(-k["clip"], k["clip"])
        x = k["k_x0"] * x0 + k["k_x"] * x + k["k_e"] * e.detach() + k["k_g"] * g
    return x.numpy()


def test_a_positive_scale_lowers_the_loss() -> None:
    model, guide = tiny(), FeatureGuide(OfOne(lambda h: h.square().mean(dim=(1, 2, 3))), ("unet.middle.0",))
    role = feature_role(model, guide)
    given = model.example(role, 3, 1, 0)
    seen: list[torch.Tensor] = []
    model.step.module.get_submodule(guide.layers[0]).register_forward_hook(lambda m, i, o: seen.append(o))
    g = role(given)["g"]
    with torch.no_grad():
        for x in (given["x"], given["x"] + 1e-2 * g / g.abs().max()):
            model.step.module(**given | {"x": x})
    before, after = (float(h.square().mean()) for h in seen[-2:])
    assert after < before


def test_what_the_model_becomes() -> None:
    guide = FeatureGuide(OfOne(lambda h: h.mean(dim=(1, 2, 3))), ("unet.stem",))
    made = with_feature_guide(tiny(), guide, scale=2.0, mode="norm", interval=(0, 9))
    (spec,) = made.wiring.guides
    assert spec.rows is not None
    assert (spec.rows.graph, spec.timesteps) == ("guide_table", (0, 19))
    assert made.guide == {"scale": 2.0, "mode": "norm", "interval": [0, 9]}
    assert made.wiring.guide_graphs == {"guide", "guide_table"}
    assert not made.inputs, "no label is asked for"


@pytest.mark.parametrize(
    ("function", "layer", "message"),
    [
        (lambda h: h.mean(dim=(1, 2, 3)), "unet.stems", r"found no layer 'unet\.stems' .* such as unet, "),
        (lambda h: h.mean(), "unet.stem", r"found a loss \(\) of 2 samples, expected \(2,\): a number a sample"),
        (lambda h: (h - h.mean(0)).square().mean(dim=(1, 2, 3)), "unet.stem", "differs by .* beside others"),
        (lambda h: F.leaky_relu(h).mean(dim=(1, 2, 3)), "unet.stem", r"guide: found aten\.leaky_relu_backward"),
        (lambda h: h.mean(dim=(1, 2, 3)), "unet.time_mlp", r"found no tensor that unet\.time_mlp gives"),
    ],
)
def test_refused(function: Callable[[torch.Tensor], torch.Tensor], layer: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        feature_role(tiny(), FeatureGuide(OfOne(function), (layer,)))


def test_a_head_that_is_not_what_was_recorded() -> None:
    """Noise of its own: what is recorded is not what autograd finds."""
    noisy = FeatureGuide(OfOne(lambda h: (h * torch.rand(4, 4)).square().mean(dim=(1, 2, 3))), ("unet.stem",))
    with pytest.raises(ExportError, match="guide"):
        feature_role(tiny(), noisy)


def test_rows_of_each_sample_and_methods_without_a_guide_are_refused() -> None:
    guide = FeatureGuide(OfOne(lambda h: h.mean(dim=(1, 2, 3))), ("unet.stem",))
    with pytest.raises(ExportError, match="rows of timestep_table depend on z too"):
        with_feature_guide(tiny(1), guide)
    plain = dataclasses.replace(tiny(), defaults={"steps": 2, "method": "ddim"})
    with pytest.raises(ExportError, match="method ddim, which takes no guide"):
        with_feature_guide(plain, guide)


def test_guides_of_two_kinds_are_refused(tmp_path: Path) -> None:
    guide = FeatureGuide(OfOne(lambda h: h.mean(dim=(1, 2, 3))), ("unet.stem",))
    own = OwnGuide(nn.Linear(1, 1), classes=2)
    with pytest.raises(ArgumentError, match="guides of several kinds"):
        build(Request(AVATARS, out=tmp_path / "b.bundle", guides=(own,), feature_guide=guide))
