"""Checkpoints of guided diffusion: which model they are, what must be said of them, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import ArgumentError, CheckpointError, EngineError
from engine.solver.timesteps import respaced_timesteps
from export.build import Request
from export.build import recognise as recognise_file
from export.classifier import Guided, settle_classifier
from export.families import family_of
from export.families.adm import NAME, Found, recognise
from export.families.adm.architecture import Architecture
from export.families.adm.published import CLASSIFIERS, PUBLISHED, SCALES
from export.guide_options import GuideOptions, split
from export.models.openai.classifier import POOLS, Classifier, ClassifierSpec
from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import OpenAIUNet
from export.models.unset import Unset
from export.read.checkpoint import Checkpoint
from export.synthetic import random_adm_checkpoint
from tests import adm_guides as guided
from tests import adm_models as golden
from tests import golden_models

MODEL = "class_learned"
CLASSIFIER = {f"out.2.{key}": torch.zeros(5, 32, 1) for key in ("c_proj.weight", "qkv_proj.weight", "positional_embedding")}


def bare(spec: OpenAIUNetSpec, path: str = "model.pt") -> Checkpoint:
    """A model's checkpoint without any numbers."""
    with torch.device("meta"), Unset():
        return Checkpoint(Path(path), "0" * 64, dict(OpenAIUNet(spec).state_dict()), {})


def read(checkpoint: Checkpoint, **said: Any) -> Found:
    return recognise(checkpoint, None, "ema", said)


def told(folder: str = MODEL, **changes: Any) -> Found:
    return read(golden.held(folder), **golden.said(folder) | changes)


# ---- published models ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_recognised(name: str) -> None:
    known, checkpoint = PUBLISHED[name], bare(PUBLISHED[name].unet)
    assert family_of(checkpoint).NAME == NAME
    for said in ({}, {"preset": name}):
        of = read(checkpoint, **said).architecture
        assert of.unet == known.unet
        assert (of.size, of.schedule.T, of.schedule.recipe) == ((known.size,) * 2, known.T, known.noise_schedule)
        assert (of.new_order, of.rescale) == (known.new_order, known.rescale)
        assert of.small == (None if known.small is None else (known.small,) * 2)
        assert of.defaults["steps"] == 25
        assert of.defaults["spacing"] == "uniform"
        assert not of.notes


def test_the_sizes_of_the_published_files() -> None:
    """Millions of parameters, as the paper gives them."""

    def millions(name: str) -> int:
        return round(sum(tensor.numel() for tensor in bare(PUBLISHED[name].unet).tensors.values()) / 1e6)

    names = ["64x64_diffusion", "128x128_diffusion", "256x256_diffusion", "512x512_diffusion"]
    assert [millions(name) for name in names] == [296, 422, 554, 559]
    assert [millions(name) for name in ("64_256_upsampler", "128_512_upsampler")] == [312, 309]


def test_random_checkpoints_are_published_models() -> None:
    state = random_adm_checkpoint("cifar10_uncond")
    of = read(Checkpoint(Path("a.pt"), "0" * 64, state, {})).architecture
    assert of.origins["heads"] == "the shapes of cifar10_uncond"
    assert (of.rescale, of.schedule.T, of.size) == (True, 4000, (32, 32))
    assert 0.9 < float(state["input_blocks.1.0.in_layers.2.weight"].std()) * (128 * 9) ** 0.5 < 1.1


def test_what_differs_in_nothing_is_one_model() -> None:
    found = read(bare(PUBLISHED["lsun_cat"].unet, "lsun_cat.pt"))
    assert found.architecture.origins["heads"] == "the shapes of 256x256_diffusion_uncond"
    assert found.name == "lsun_cat"


def test_a_wrong_preset_is_refused() -> None:
    checkpoint = bare(PUBLISHED["256x256_diffusion"].unet)
    with pytest.raises(CheckpointError, match=r"model_channels = 256, expected 192 .*--preset 256x256_diffusion$"):
        read(checkpoint, preset="64x64_diffusion")
    with pytest.raises(ArgumentError, match="Did you mean '64x64_diffusion'"):
        read(checkpoint, preset="64x64_difusion")
    with pytest.raises(ArgumentError, match="heads: found 8 heads from --heads but 64 head channels from preset"):
        read(checkpoint, preset="256x256_diffusion", heads=8)


def test_a_flag_beside_recognised_shapes_decides() -> None:
    of = read(bare(PUBLISHED["256x256_diffusion"].unet), heads=8).architecture
    assert of.unet.num_heads == 8
    assert of.unet.num_head_channels is None
    assert of.notes == ("heads: --heads says otherwise than the shapes of 256x256_diffusion, which has 64 head channels",)


# ---- what must be said -----------------------------------------------------------------------------


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(CheckpointError) as refused:
        read(golden.held("upsample"))
    assert "do not tell its heads, image size, small size, noise schedule" in str(refused.value)
    for flag in ("--heads N or --head-channels C", "--image-size PIXELS", "--small-size PIXELS", "--noise-schedule linear"):
        assert flag in str(refused.value)


def test_what_the_reference_has_a_default_for_is_noted() -> None:
    of = read(golden.held(MODEL), heads=2, image_size=16, noise_schedule="cosine").architecture
    assert (of.schedule.T, of.new_order, of.rescale) == (1000, False, False)
    assert "diffusion steps, rescaled timesteps, attention order: taken for the reference's defaults" in of.notes[0]
    assert "without --diffusion-steps, --rescale-timesteps, --attention-order" in of.notes[0]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"heads": 3, "head_channels": None}, "heads: found 3, expected a divisor of the attention widths 64"),
        ({"heads": 2}, "found both, expected one"),
        ({"image_size": 15}, "--image-size: found 15 x 15, expected multiples of 2"),
        ({"size": (16, 9)}, "--size: found 16 x 9"),
        ({"small_size": 4}, "takes no image"),
        ({"noise_schedule": "sqrt"}, "expected linear or cosine"),
        ({"diffusion_steps": 20}, r"expected 21 \.\. "),
        ({"respacing": "ten"}, "respacing is 'ten'; expected"),
        ({"respacing": "ddim999"}, "which no whole stride gives"),
        ({"respacing": "900,200"}, "900 of the 500 timesteps of section 1"),
        ({"formulation": 1}, "options: found 'formulation', expected some of preset, name, heads"),
    ],
)
def test_what_is_said_wrongly_is_refused(said: Mapping[str, Any], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        told(**said)


def test_the_recorded_setting() -> None:
    assert [told().architecture.defaults[name] for name in ("method", "steps", "spacing")] == ["ddim_clipped", 25, "uniform"]
    assert told(diffusion_steps=30).architecture.defaults["spacing"] == "linspace"
    even = told(respacing="250").architecture.defaults
    assert (even["method"], even["steps"], even["spacing"], even["timesteps"]) == ("ddpm", 250, "linspace", None)
    parts = told(respacing="10,15,20").architecture.defaults
    assert (parts["steps"], parts["spacing"], parts["timesteps"][-1]) == (45, None, 0)
    assert parts["timesteps"][::-1] == respaced_timesteps(1000, "10,15,20").tolist()
    assert told(respacing="ddim250").architecture.defaults["steps"] == 250


def test_other_sizes() -> None:
    assert told(size=(24, 32)).architecture.size == (24, 32)
    of = told("upsample", size=(32, 16)).architecture
    assert (of.size, of.small) == ((32, 16), (8, 4))
    with pytest.raises(ArgumentError, match="--small-size: found 5 for images of 16"):
        told("upsample", small_size=5, size=(18, 18))


def test_without_its_variance() -> None:
    of = told(fixed_variance=True)
    model = of.load()
    assert model.variance == "fixedlarge"
    assert [spec.name for spec in model.step.outputs] == ["eps"]
    assert model.pipeline["step"]["outputs"] == {"eps": "e"}
    assert any("--fixed-variance" in note for note in model.notes)
    x, row = torch.randn(1, 3, 16, 16), torch.randn(1, of.network().row_width)
    whole = told().load().step({"x": x, "row": row})
    torch.testing.assert_close(model.step({"x": x, "row": row})["eps"], whole["eps"], rtol=0, atol=1e-5)
    assert set(whole) == {"eps", "range"}


# ---- files -----------------------------------------------------------------------------------------


def wrapped(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {"step": 3, "model": {f"module.{key}": value for key, value in state.items()}}


@pytest.mark.parametrize(
    "content", [dict, wrapped, lambda s: {"ema": {"_orig_mod." + k: v for k, v in s.items()}}], ids=["plain", "model", "ema"]
)
def test_wrapped_state_dicts(content: Any, tmp_path: Path) -> None:
    torch.save(content(golden.state_dict(MODEL)), tmp_path / "a.pt")
    found = recognise_file(Request(tmp_path / "a.pt", options=golden.said(MODEL)))
    assert isinstance(found, Found)
    assert found.architecture == told().architecture
    assert torch.equal(found.network().state_dict()["label_emb.weight"], golden.state_dict(MODEL)["label_emb.weight"])


def test_halves_and_safetensors(tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in golden.state_dict(MODEL).items()}, tmp_path / "model010000.safetensors")
    found = recognise_file(Request(tmp_path / "model010000.safetensors", options=golden.said(MODEL)))
    assert isinstance(found, Found)
    assert all(tensor.dtype == torch.float32 for tensor in found.network().parameters())
    assert found.source.weights == "online"
    assert "145 of 145 tensors are stored as float16" in found.notes()[0]
    assert "a file of its own, ema_*.pt" in found.notes()[1]
    assert found.lines()["heads"] == "16 channels each, legacy order  [--head-channels; --attention-order]"


# ---- classifiers that guide ------------------------------------------------------------------------


def classifier(spec: ClassifierSpec, path: str = "classifier.pt") -> Checkpoint:
    """A classifier's checkpoint without any numbers."""
    with torch.device("meta"), Unset():
        return Checkpoint(Path(path), "0" * 64, dict(Classifier(spec).state_dict()), {})


def fit(of: Architecture) -> Guided:
    """What a classifier of a model must fit."""
    return Guided((of.unet.channels, *of.size), of.unet.classes, of.schedule)


@pytest.mark.parametrize(
    ("name", "model", "scale"),
    [
        ("64x64_classifier", "64x64_diffusion", 1.0),
        ("128x128_classifier", "128x128_diffusion", 0.5),
        ("256x256_classifier", "256x256_diffusion_uncond", 10.0),
        ("512x512_classifier", "512x512_diffusion", 4.0),
    ],
)
def test_published_classifiers_are_recognised(name: str, model: str, scale: float) -> None:
    of = read(bare(PUBLISHED[model].unet)).architecture
    found = settle_classifier(classifier(CLASSIFIERS[name].spec), fit(of), GuideOptions())
    assert (found.published, found.spec, found.notes) == (name, CLASSIFIERS[name].spec, ())
    assert SCALES[model] == scale


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("by_block", [True, False])
def test_every_pool_is_read(pool: str, by_block: bool) -> None:
    unet = OpenAIUNetSpec(3, 5, 64, (1, 2), 2, (2,), None, 64, scale_shift=True, resample_blocks=by_block)
    found = settle_classifier(classifier(ClassifierSpec(unet, pool, (16, 16))), fit(told().architecture), GuideOptions())
    assert found.spec == ClassifierSpec(unet, pool, (16, 16))
    assert "--guide-heads otherwise" in found.notes[0]


def test_blocks_that_may_be_levels_in_two_ways() -> None:
    unet = OpenAIUNetSpec(3, 5, 64, (1, 1), 2, (), None, 64, resample_blocks=True)
    checkpoint = classifier(ClassifierSpec(unet, "adaptive", (16, 16)))
    with pytest.raises(CheckpointError, match=r"may be .* or 2 residual blocks on each of 2 levels.*--guide-depth"):
        settle_classifier(checkpoint, fit(told().architecture), GuideOptions())
    assert settle_classifier(checkpoint, fit(told().architecture), GuideOptions(guide_depth=2)).spec.unet == unet


def wrong(**changes: Any) -> Checkpoint:
    """The golden classifier with fields of its architecture changed."""
    of = guided.spec("classifier_attention")
    size = changes.pop("size", of.size)
    return classifier(ClassifierSpec(replace(of.unet, **changes), of.pool, size))


@pytest.mark.parametrize(
    ("checkpoint", "said", "says"),
    [
        (wrong(size=(32, 32)), {}, "images of 32 pixels a side, by the 256 positions of its pool, expected 16 x 16"),
        (wrong(out_channels=7), {}, "a classifier of 7 classes, expected 5"),
        (wrong(in_channels=1), {}, "a classifier of 1 channels, expected 3"),
        (wrong(), {"guide_heads": 3, "guide_head_channels": None}, "expected multiples of 3 as was said"),
        (wrong(), {"guide_heads": 2}, "found both, expected one of the two"),
        (wrong(), {"guide_depth": 3}, "no levels of equally many residual blocks, 3 each"),
        (golden.held(MODEL), {}, "found no classifier of guided-diffusion"),
    ],
)
def test_classifiers_that_do_not_fit(checkpoint: Checkpoint, said: dict[str, Any], says: str) -> None:
    options = GuideOptions(**{"guide_head_channels": 16, **said})
    with pytest.raises(EngineError, match=says):
        settle_classifier(checkpoint, fit(told().architecture), options)


def test_a_classifier_of_another_schedule() -> None:
    of = read(bare(PUBLISHED["64x64_diffusion"].unet)).architecture
    linear = replace(of, schedule=told().architecture.schedule)
    with pytest.raises(CheckpointError, match="64x64_classifier, which was trained on noise of a cosine schedule"):
        settle_classifier(classifier(CLASSIFIERS["64x64_classifier"].spec), fit(linear), GuideOptions())


def test_what_is_said_of_a_guide_alone_is_refused() -> None:
    with pytest.raises(ArgumentError, match="--guide-scale: found it without --guide"):
        split({"guide_scale": 2.0, "heads": 3})
    said, rest = split({"guide": (Path("a.pt"),), "guide_depth": 2, "heads": 3})
    assert said == GuideOptions((Path("a.pt"),), guide_depth=2)
    assert rest == {"heads": 3}


def test_a_classifier_is_refused() -> None:
    keys = {key: value for key, value in golden.state_dict(MODEL).items() if not key.startswith(("out", "label"))}
    for pool in (CLASSIFIER, {"out.3.weight": torch.zeros(5, 64, 1, 1)}, {"out.0.weight": torch.zeros(2048, 96)}):
        checkpoint = Checkpoint(Path("64x64_classifier.pt"), "0" * 64, keys | pool, {})
        assert family_of(checkpoint).NAME == NAME
        with pytest.raises(CheckpointError, match=r"found a classifier, .*--guide 64x64_classifier\.pt"):
            read(checkpoint)


NAN = torch.full((6,), float("nan"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"middle_block__1__qkv__weight": None}, r"missing middle_block\.1\.qkv\.weight \(expected shape \[192, 64, 1\]\)"),
        ({"out__2__bias": torch.zeros(5)}, r"misshapen out\.2\.bias \(found shape \[5\], expected \[6\]\)"),
        ({"input_blocks__9__0__op__weight": torch.zeros(2)}, r"unexpected input_blocks\.9\.0\.op\.weight"),
        ({"out__2__bias": NAN}, "NaN or infinity in 'out.2.bias'"),
        ({"output_blocks__1__2__in_layers__2__weight": None}, r"missing output_blocks\.1\.2\.in_layers\.2\.weight"),
        ({"output_blocks__4__0__in_layers__0__bias": torch.zeros(3)}, r"found 5 output_blocks, of which \[1\] double"),
        ({"out__2__weight": torch.zeros(5, 32, 3, 3)}, "from 3 to 5 channels"),
        ({"time_embed__0__weight": torch.zeros(128, 40)}, "40 base channels"),
    ],
)
def test_other_files_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read(golden.held(MODEL, **changes), **golden.said(MODEL)).network()


def test_a_vae_is_not_taken() -> None:
    with pytest.raises(ArgumentError, match="--vae: found"):
        recognise(golden.held(MODEL), Path("vae.ckpt"), "ema", golden.said(MODEL))


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_diffusevae_keeps_its_own(name: str) -> None:
    """Also where only the network's keys are left, as an unconditional model may be stored."""
    state = golden_models.state_dict(name)
    prefix = "target_network.decoder."
    inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    for tensors in (state, inner):
        assert family_of(Checkpoint(Path("a.ckpt"), "0" * 64, tensors, {})).NAME == "diffusevae"
