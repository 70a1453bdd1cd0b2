"""The networks of latent diffusion against the reference's own outputs."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from export.families.latent.graphs import roles
from export.graphs.roles import Role
from export.models.latent import first_stage
from export.models.latent.conditioners import InpaintConditioner, Rescaler
from export.models.latent.first_stage import Quantiser
from export.models.latent.spec import RescalerConditionerSpec
from export.models.unet import sinusoid
from tests import latent_models

TOLERANCE = 5e-5
NAMES = latent_models.NAMES
INPUTS = ("labels", "tokens", "segmentation")  # of the conditioners that take one array
networks = functools.cache(latent_models.networks)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one


@functools.cache
def arrays(name: str) -> dict[str, torch.Tensor]:
    """What the reference computed, as tensors."""
    return {key: torch.as_tensor(value) for key, value in latent_models.expected(name).items()}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().mean() / expected.std())


def having(*keys: str) -> list[str]:
    """The models whose vectors hold all of these."""
    return [name for name in NAMES if all(key in latent_models.expected(name) for key in keys)]


@functools.cache
def graphs(name: str, raw: bool = False) -> dict[str, Role]:
    """The graphs of a model's bundle."""
    return roles(latent_models.spec(name), *networks(name, raw), latent_models.config(name)["T"])


def predictions(name: str, raw: bool, cond: torch.Tensor | None) -> torch.Tensor:
    """The network's output for x_T at every t, by the graphs that sampling runs."""
    of, at = graphs(name, raw), arrays(name)
    rows = of["timestep_table"]({"timesteps": at["t"]})["rows"]
    inputs = {"x": at["x_T"]}
    if cond is not None:
        inputs |= of["keys_values"]({"context": cond.expand(2, -1, -1)}) if "keys_values" in of else {"cond": cond}
    return torch.stack([of["denoiser"](inputs | {"row": row[None]})["eps"] for row in rows])


CASES = [
    *[("eps", "cond", False, name) for name in NAMES],
    *[("eps_null", "cond_null", False, name) for name in having("eps_null")],
    *[("eps_raw", "cond", True, name) for name in having("eps_raw")],
]


@pytest.mark.parametrize(("key", "cond", "raw", "name"), CASES)
def test_what_the_network_predicts(name, key, cond, raw):
    at = arrays(name)
    assert difference(predictions(name, raw, at.get(cond)), at[key]) < TOLERANCE


def test_one_timestep_a_sample():
    unet, _, _ = networks("text_bert_cfg")
    at = arrays("text_bert_cfg")
    with torch.inference_mode():
        found = unet(at["x_T"], at["t"][:2], at["cond"])
    assert difference(found, torch.stack([at["eps"][0, 0], at["eps"][1, 1]])) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_of_timesteps(name):
    unet, _, _ = networks(name)
    at = arrays(name)
    assert difference(unet.time_embed(sinusoid(at["t"], unet.spec.model_channels, "openai")), at["emb"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_first_stage(name):
    of, at, scale = graphs(name), arrays(name), latent_models.spec(name).scale
    latent = of["first_stage_encoder"]({"image": at["img"]})["latent"]
    if "fs_moments" in at:
        _, stage, _ = networks(name)
        moments = stage.moments(at["img"])
        assert difference(moments, at["fs_moments"]) < TOLERANCE
        latent = latent + scale * (moments.chunk(2, dim=1)[1] / 2).exp() * at["fs_noise"]
    assert difference(latent, at["fs_latent"]) < TOLERANCE
    coded = of["codebook"]({"latent": at["z"]})["codes"] if "codebook" in of else at["z"]
    assert difference(of["first_stage_decoder"]({"latent": coded})["image"], at["z_decode"]) < TOLERANCE


@pytest.mark.parametrize("name", having("z_indices"))
def test_codes(name, monkeypatch):
    """Also where the codebook is searched in parts, the last one shorter."""
    _, stage, _ = networks(name)
    at, scale = arrays(name), latent_models.spec(name).scale
    for searched in (first_stage.SEARCHED, 24 * 64):
        monkeypatch.setattr(first_stage, "SEARCHED", searched)
        for key in ("z", "fs_latent"):
            assert torch.equal(stage.indices(at[key] / scale), at[f"{key}_indices"].long())


def test_the_first_of_equal_codes_is_found(monkeypatch):
    monkeypatch.setattr(first_stage, "SEARCHED", 2)
    quantiser = Quantiser(6, 1)
    quantiser.embedding.weight.data = torch.tensor([[3.0], [1.0], [1.0], [1.0], [-2.0], [1.0]])
    assert quantiser.indices(torch.tensor([0.9, -9.0]).reshape(2, 1, 1, 1)).flatten().tolist() == [1, 4]


@pytest.mark.parametrize("name", [name for name in NAMES if any(key in latent_models.expected(name) for key in INPUTS)])
def test_conditioners(name):
    _, _, conditioner = networks(name)
    at = arrays(name)
    given = next(at[key] for key in INPUTS if key in at)
    assert difference(conditioner(given.long()), at["cond"]) < TOLERANCE
    if "cond_null" in at:
        null = at["null_label"] if "null_label" in at else at["null_tokens"]
        assert difference(conditioner(null[None]), at["cond_null"]) < TOLERANCE


def test_the_conditioner_of_inpainting():
    _, _, conditioner = networks("inpaint_concat")
    at = arrays("inpaint_concat")
    assert isinstance(conditioner, InpaintConditioner)
    cond = conditioner(2 * at["image"] - 1, at["mask"])
    assert difference(cond[:, :-1], at["masked_latent"]) < TOLERANCE
    assert torch.equal(cond[:, -1], at["cond"][:, -1])


def test_the_composite_of_inpainting():
    at, run = arrays("inpaint_concat"), "ddim_uniform_5_eta0"
    inputs = {"decoded": at[f"{run}_decode"], "image": 2 * at["image"] - 1, "mask": at["mask"]}
    found = graphs("inpaint_concat")["composite"](inputs)["composite"]
    assert difference((found.clamp(-1, 1) + 1) / 2, at[f"{run}_composite"]) < TOLERANCE


def test_a_rescaler_without_a_map_gives_the_classes():
    label = torch.randint(0, 5, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    halved = F.one_hot(label, 5).permute(0, 3, 1, 2).float()
    for _ in range(2):
        halved = F.interpolate(halved, scale_factor=0.5, mode="bilinear")
    assert torch.equal(Rescaler(RescalerConditionerSpec(5, 2, None))(label), halved)
