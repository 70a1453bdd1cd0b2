"""Guides: a classifier's gradient as a graph of forward operations, beside the reference's and autograd's, in runtimes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import ExportError
from export.families.adm import recognise
from export.families.base import Model
from export.graphs.onnx_export import export_onnx
from export.graphs.parity import load_onnxruntime, load_openvino
from export.guides import BOUND, Guidance, OwnGuide, guide_role, with_guides
from tests import adm_guides as guided
from tests import adm_models as golden

SMALL = Guidance((3, 12, 8), 4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one


@pytest.mark.parametrize("folder", ["classifier_attention", "classifier_adaptive"])
def test_the_reference_s_classifiers(folder: str) -> None:
    network, cfg, expected = guided.network(folder), golden.config(folder), golden.expected(folder)
    process = cfg["diffusion"]
    role = guide_role(network, Guidance((3, 16, 16), cfg["arch"]["out_channels"], network.row_width))
    for t, logits, g in zip(expected["t"].tolist(), expected["logits"], expected["g"], strict=True):
        rescaled = t * (1000 / process["steps"] if process["rescale_timesteps"] else 1.0)
        x, label = torch.from_numpy(expected["x_T"]), torch.from_numpy(expected["y"]).long()
        with torch.no_grad():
            row = network.timestep_rows(torch.tensor([rescaled]))
            found = network(x, row).numpy()
        assert np.abs(found - logits).max() < 5e-6 * np.abs(logits).max()
        found_g = role({"x": x, "label": label, "row": row})
        assert np.abs(found_g["g"].numpy() - g).max() < 1e-5 * np.abs(g).max()
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        np.testing.assert_allclose(found_g["entropy"], -(np.exp(log_p) * log_p).sum(1), rtol=1e-5, atol=1e-6)


class Convolutions(nn.Module):
    """What a ResNet begins with: stride, max pooling, batch norm; and a doubled and an averaged map."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2),
            nn.GroupNorm(2, 8), nn.GroupNorm(2, 8, affine=False), nn.BatchNorm2d(8, affine=False),
        )  # fmt: skip
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.body(x).mean(dim=(2, 3)))
        return logits


class Tokens(nn.Module):
    """What a ViT is made of: patches, a token in front, attention, layer norm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.front = nn.Conv2d(3, 16, 4, stride=4), nn.Parameter(torch.randn(1, 1, 16))
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 48)
        norms = nn.LayerNorm(16), nn.LayerNorm(16, elementwise_affine=False)
        self.wide = nn.Sequential(*norms, nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.front.expand(h.shape[0], -1, -1), h], dim=1)
        q, k, v = self.qkv(self.norm(h)).chunk(3, dim=-1)
        h = h + (q @ k.transpose(1, 2) / 4).softmax(dim=-1) @ v
        logits: torch.Tensor = self.last((h + self.wide(h))[:, 0])
        return logits


class Squares(nn.Module):
    """A linear layer with a square weight, by which the gradient multiplies too: OpenVINO packs it once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square = nn.Conv2d(3, 128, 4, stride=4), nn.Linear(128, 128)
        self.last = nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.gelu(self.square(self.first(x).mean(dim=(2, 3))))
        logits: torch.Tensor = self.last(h)
        return logits


@pytest.mark.parametrize("kind", [Convolutions, Tokens, Squares])
def test_a_module_of_one_s_own_in_every_runtime(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    classifier = kind().train()
    next(classifier.children()).eval()
    role = guide_role(classifier, SMALL)
    modes = classifier.training, next(classifier.children()).training
    assert modes == (True, False), "the caller's module is as it was"
    assert all(parameter.requires_grad for parameter in classifier.parameters())
    model = export_onnx(role)
    classifier.eval()
    for load in (load_onnxruntime, load_openvino):
        run = load(model)
        for batch in (1, 3):
            x, label = torch.randn(batch, 3, 12, 8, requires_grad=True), torch.arange(batch) % 4
            log_p = classifier(x).log_softmax(-1)
            (exact,) = torch.autograd.grad(log_p[torch.arange(batch), label].sum(), x)
            found = run({"x": x.detach().numpy(), "label": label.numpy()})
            assert np.abs(found["g"] - exact.numpy()).max() < 1e-5 * float(exact.abs().max())
            np.testing.assert_allclose(found["entropy"], -(log_p.exp() * log_p).sum(-1).detach(), rtol=1e-5)


class Turn(nn.Module):
    """What it does depends on the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x if bool(x.sum() > 0) else x


class Wrong(nn.Module):
    """A classifier with one thing wrong."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.layer, self.turn = what, nn.ConvTranspose2d(3, 4, 2), Turn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.what == "transposed":
            x = self.layer(x)
        if self.what == "warped":
            x = nn.functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False)
        logits = x[:, :1].mean(dim=(2, 3)) * torch.arange(1.0, 5.0)
        if self.what == "random":
            logits = logits * torch.rand_like(logits)
        if self.what == "branches":
            logits = self.turn(logits)
        return logits[:, :3] if self.what == "classes" else logits


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("transposed", "found a convolution that is transposed"),
        ("classes", r"found logits \(2, 3\), expected \(2, 4\)"),
        ("random", f"expected at most {BOUND:g}"),
        ("branches", "guide guide, layer 'turn': found that torch .* cannot record its gradient"),
        ("warped", "grid_sampler_2d_backward.* in the gradient, for which there is no form in forward operations"),
    ],
)
def test_what_cannot_guide_is_refused(what: str, sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        guide_role(Wrong(what), SMALL)


class Small(nn.Module):
    """One that is recorded in a second or two."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(nn.functional.silu(self.first(x)).mean(dim=(2, 3)))
        return logits


@pytest.fixture(scope="module")
def unguided() -> Model:
    """A model without classes, of 500 timesteps."""
    return recognise(golden.held("cosine_neworder"), None, "ema", golden.said("cosine_neworder")).load()


def test_own_classifiers_become_guides_of_a_model(unguided: Model) -> None:
    parts = [OwnGuide(Small(), 4, timesteps=timesteps) for timesteps in ((0, 250), (250, 499))]
    model = with_guides(unguided, parts, scale=3.0, mode="norm", interval=(10, 400))
    assert [(spec.name, spec.range) for spec in model.input_specs] == [("label", (0.0, 3.0))]
    guides = model.wiring.guides
    assert [(g.step.graph, g.rows, g.timesteps, g.classes) for g in guides] == [
        ("guide_0", None, (0, 250), 4), ("guide_1", None, (250, 499), 4),
    ]  # fmt: skip
    assert model.guide == {"scale": 3.0, "mode": "norm", "interval": [10, 400]}
    given = model.example(model.roles["guide_1"], 2, 1, 0)
    assert {name: tuple(array.shape) for name, array in given.items()} == {"x": (2, 3, 16, 16), "label": (2,)}
    assert unguided.wiring.guides == (), "the model that was given is as it was"
    assert unguided.guide is None


def test_guides_that_do_not_fit_a_model(unguided: Model) -> None:
    with pytest.raises(ExportError, match="guide guide_1: found a classifier of 3 classes, expected 4"):
        with_guides(unguided, [OwnGuide(Small(), 4, timesteps=(0, 9)), OwnGuide(Small(3), 3, timesteps=(10, 499))])
    plain = replace(unguided, defaults={**unguided.defaults, "method": "plms"})
    with pytest.raises(ExportError, match="records method plms, which takes no guide, expected ddim_clipped or ddpm"):
        with_guides(plain, [OwnGuide(Small(), 4)])
