"""Latent diffusion models as they are handed over, checkpoint and YAML: read, or refused with a sentence that helps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ArgumentError, CheckpointError
from export.families.latent.config import read_config, with_null
from export.families.latent.published import identify, published
from export.families.latent.weights import claims, expected, read_weights
from export.models.latent.spec import ClassConditionerSpec, InpaintConditionerSpec
from export.read.checkpoint import Checkpoint, read_checkpoint
from tests import latent_models as golden

State = dict[str, Any]
VQ, CLASSES, INPAINT = "uncond_vq_f4", "class_crossattn_cfg", "inpaint_concat"
UNET, EMA = "model.diffusion_model.", "model_ema.diffusion_model"
CODEBOOK = "first_stage_model.quantize.embedding.weight"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one


@pytest.fixture
def yaml_file(tmp_path: Path) -> Callable[..., Path]:
    """yaml_file(model, (old, new), …): a model's YAML with these texts replaced."""

    def write(model: str, *changes: tuple[str, str]) -> Path:
        text = golden.yaml_text(model)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "model.yaml"
        path.write_text(text)
        return path

    return write


def held(model: str, **changes: Any) -> Checkpoint:
    """A golden model's checkpoint as it is read, with tensors changed by key, `__` for a dot; None takes one away."""
    state = {**golden.checkpoint(model)["state_dict"], **{key.replace("__", "."): value for key, value in changes.items()}}
    return Checkpoint(Path("model.ckpt"), "0" * 64, {key: value for key, value in state.items() if value is not None}, {})


@pytest.mark.parametrize("model", golden.NAMES)
def test_a_golden_model_is_read(model: str, yaml_file: Callable[..., Path]) -> None:
    config, of = read_config(yaml_file(model)), golden.config(model)
    spec = golden.spec(model)
    if isinstance(spec.conditioner, ClassConditionerSpec):
        assert config.spec.conditioner is not None
        config = with_null(config, spec.conditioner.classes - 1)
    weights = read_weights(held(model), config)
    assert weights.scale == pytest.approx(spec.scale)
    assert dataclasses.replace(config.spec, scale=spec.scale) == spec
    assert config.schedule.numbers == {"start": of["linear_start"], "end": of["linear_end"]}
    assert (config.schedule.recipe, config.schedule.T, config.use_ema) == ("scaled_linear", of["T"], of["use_ema"])
    assert config.scale_by_std == of["scale_by_std"]
    assert weights.kind == ("ema" if of["use_ema"] else "online")
    state = golden.checkpoint(model)["state_dict"]
    keys = [key for key in of["parameters"] if key not in of["ignored"]]
    assert [UNET + key for key in weights.unet] == [key for key in keys if key.startswith(UNET)]
    for key, tensor in weights.unet.items():
        assert torch.equal(tensor, state[EMA + key.replace(".", "") if of["use_ema"] else UNET + key])
    for prefix, found in (("first_stage_model.", weights.stage), ("cond_stage_model.", weights.conditioner)):
        assert all(torch.equal(tensor, state[prefix + key]) for key, tensor in found.items())
    left = {key for key in keys if key.startswith("first_stage")} - {f"first_stage_model.{key}" for key in weights.stage}
    assert not left


def test_a_file_goes_the_same_way(tmp_path: Path, yaml_file: Callable[..., Path]) -> None:
    content = golden.checkpoint("inpaint_concat") | {"callbacks": {"x": {"best": torch.ones(())}}, "optimizer_states": [{}]}
    torch.save(content, tmp_path / "a.ckpt")
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    assert claims(checkpoint.tensors)
    config = read_config(yaml_file("inpaint_concat"))
    weights = read_weights(checkpoint, config, "online")
    assert weights.kind == "online"
    assert torch.equal(weights.unet["out.2.bias"], content["state_dict"][f"{UNET}out.2.bias"])
    assert torch.equal(weights.conditioner["quant_conv.bias"], weights.stage["quant_conv.bias"])
    assert isinstance(config.spec.conditioner, InpaintConditionerSpec)
    assert not any(key.startswith("decoder") for key in weights.conditioner)


# What a YAML may say and what is made of it.
@pytest.mark.parametrize(
    ("model", "old", "new", "field", "value"),
    [
        (VQ, "timesteps: 1000", "beta_schedule: sqrt_linear", "schedule.recipe", "linear"),
        (VQ, "timesteps: 1000", "beta_schedule: cosine", "schedule.recipe", "cosine"),
        (VQ, "linear_start: 0.0015", "linear_start: 15e-4", "schedule.numbers", {"start": 0.0015, "end": 0.0195}),
        (VQ, "timesteps: 1000", "parameterization: x0", "spec.prediction", "x0"),
        (VQ, "concat_mode: false", "conditioning_key: concat", "spec.conditioner", None),
        (CLASSES, "        n_classes: 11\n", "", "spec.conditioner", ClassConditionerSpec(1000, 24)),
        (CLASSES, "n_classes: 11", "n_classes: 1001", "spec.conditioner", ClassConditionerSpec(1001, 24, 1000)),
        ("text_bert_cfg", "vocab_size: 99", "device: cuda", "tokenizer", True),
        ("text_bert_cfg", "vocab_size: 99", "vocab_size: 99", "tokenizer", False),
        ("text_bert_cfg", "conditioning_key: crossattn", "concat_mode: false", "spec.unet.context_dim", 24),
    ],
)
def test_what_a_configuration_says(
    yaml_file: Callable[..., Path], model: str, old: str, new: str, field: str, value: object
) -> None:
    found: Any = read_config(yaml_file(model, (old, new)))
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


STAGE_TARGET = "ldm.models.autoencoder.VQModelInterface"
REFUSED: list[tuple[str, str, str, str]] = [
    (VQ, "model_channels: 32", "model_chanels: 32", "model_channels = None"),
    (VQ, "model_channels: 32", "model_channels: 32\n        use_mixture: 1", "params.use_mixture, which may change"),
    (VQ, "model_channels: 32", "model_channels: 32\n        num_classes: 10", "num_classes = 10, expected null"),
    (VQ, "model_channels: 32", "model_channels: 32\n        dims: 3", "dims = 3, expected 2"),
    (VQ, "model_channels: 32", "model_channels: 40", "model_channels = 40, expected a multiple of 32"),
    (VQ, "model_channels: 32", "model_channels: 100000000000", "an integer of 1 to 65536"),
    (VQ, "num_head_channels: 32", "num_heads: 5", "num_heads = 5, expected a divisor of"),
    (VQ, "num_head_channels: 32", "dropout: 0", "weights do not tell either"),
    (VQ, "        num_head_channels: 32", "        num_heads: 1\n        num_heads: 4", "the key 'num_heads' twice"),
    (VQ, "image_size: 8\n    channels", "image_size: 10\n    channels", "image_size = 10, expected a multiple of 4"),
    (VQ, "    channels: 3", "    channels: 4", "found 4 channels, a network that predicts 3"),
    (VQ, STAGE_TARGET, "os.system", "target = 'os.system', expected one of"),
    (VQ, STAGE_TARGET, "ldm.models.autoencoder.AutoencoderKL", "double_z = False, expected true for AutoencoderKL"),
    (VQ, "ldm.models.diffusion.ddpm.LatentDiffusion", "a.B", "model.target = 'a.B'"),
    (VQ, "linear_start: 0.0015", "linear_start: 0.5", "linear_end = 0.0195, expected at least"),
    (VQ, "timesteps: 1000", "beta_schedule: sqrt", "beta_schedule = 'sqrt'"),
    (VQ, "timesteps: 1000", "timesteps: !!python/object/apply:os.getpid []", "no YAML of plain values"),
    (VQ, "timesteps: 1000", "timesteps: '${T}'", "timesteps = '${T}', expected an integer"),
    (VQ, "cond_stage_config: __is_unconditional__", "cond_stage_config: __is_first_stage__", "masked_image beside"),
    ("sr_concat", "        in_channels: 6", "        in_channels: 3", "3 input channels, expected 4"),
    ("sr_concat", "concat_mode: true", "concat_mode: false", "context is made elsewhere"),
    (INPAINT, "in_channels: 7", "in_channels: 6", "6 input channels, expected 7"),
    (INPAINT, "concat_mode: true", "conditioning_key: hybrid", "conditioning_key = 'hybrid'"),
    (INPAINT, "concat_mode: true", "conditioning_key: crossattn", "InpaintConditioner with conditioning_key crossattn"),
    ("semantic_concat", "n_stages: 2", "n_stages: 1", "n_stages = 1, expected halvings"),
    ("semantic_concat", "n_stages: 2", "n_stages: 2\n        bias: true", "bias = True, expected False"),
    (CLASSES, "context_dim: 24", "context_dim: 32", "context_dim 32 and a condition of 24 context"),
    ("text_bert_cfg", "BERTEmbedder", "FrozenCLIPTextEmbedder", "CLIP's encoders cannot be built: choose"),
]


@pytest.mark.parametrize(("model", "old", "new", "says"), REFUSED)
def test_a_configuration_is_refused(yaml_file: Callable[..., Path], model: str, old: str, new: str, says: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_config(yaml_file(model, (old, new)))
    assert says in str(refused.value)


BILLION = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else '1'}]\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BILLION, "the alias *l0"),
        ("[" * 10_000, "more than 32 levels"),
        ("a: " + "9" * 5000, "no YAML of plain values"),
        ("x" * 70_000, "more than 65536 bytes"),
        ("- 1", "list instead of fields"),
        ("", "NoneType instead of fields"),
        ("a: 1", "expected model: first"),
        ("model: 1", "model = 1, expected fields"),
        ("model: {? [1]: 2}", "no YAML of plain values"),
        ("\x00", "no YAML of plain values"),
    ],
    ids=["aliases", "depth", "digits", "size", "list", "empty", "other", "text", "keys", "zero"],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(CheckpointError) as refused:
        read_config(tmp_path / "a.yaml")
    assert says in str(refused.value)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no configuration to read .*check the path"):
        read_config(tmp_path / "none.yaml")


NAN = torch.full((64, 3), float("nan"))
TAMPERED: list[tuple[str, State, str]] = [
    (VQ, {CODEBOOK: NAN}, f"NaN or infinity in '{CODEBOOK}'"),
    (VQ, {CODEBOOK: None}, f"missing {CODEBOOK} (expected shape [64, 3])"),
    (VQ, {CODEBOOK: torch.zeros(65, 3)}, f"misshapen {CODEBOOK} (found shape [65, 3], expected [64, 3])"),
    (VQ, {f"{EMA}out2bias": torch.zeros(3, dtype=torch.int8)}, "dtype torch.int8"),
    (VQ, {f"{EMA}out2bias": None}, f"missing {EMA}out2bias"),
    (VQ, {"model_ema.diffusion_modelout3bias": torch.zeros(3)}, "unexpected keys model_ema.diffusion_modelout3bias"),
    (VQ, {"control_model.a": torch.zeros(3)}, "unexpected keys control_model.a"),
    (VQ, {"scale_factor": torch.tensor(0.5)}, "scale_factor 0.5 in the file and 1 from"),
    (VQ, {"betas": torch.linspace(1e-4, 0.02, 1000)}, "betas of linear, beta 0.0001 to 0.02, T = 1000 in the file"),
    (VQ, {"betas": torch.zeros(())}, "found betas of shape []"),
    (VQ, {"betas": None, "alphas_cumprod": torch.linspace(0.9, 0.1, 1000)}, "alphas_cumprod of shape [1000] that end"),
    ("uncond_kl_std", {"scale_factor": None}, "found no scale_factor"),
    ("uncond_kl_std", {"scale_factor": torch.tensor(float("nan"))}, "scale_factor of shape [] that is nan"),
    ("uncond_kl_std", {"scale_factor": torch.ones(2)}, "scale_factor of shape [2]"),
    (INPAINT, {"cond_stage_model.encoder.conv_in.bias": None}, "missing cond_stage_model.encoder.conv_in.bias"),
]


@pytest.mark.parametrize(("model", "changes", "says"), TAMPERED)
def test_weights_are_refused(yaml_file: Callable[..., Path], model: str, changes: State, says: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_weights(held(model, **changes), read_config(yaml_file(model)))
    assert says in str(refused.value)


def test_another_models_configuration_is_refused(yaml_file: Callable[..., Path]) -> None:
    config = read_config(yaml_file(VQ, ("linear_end: 0.0195", "linear_end: 0.0155")))
    with pytest.raises(CheckpointError, match=r"0\.0195, T = 1000 in the file and scaled linear, beta 0\.0015 to 0\.0155"):
        read_weights(held(VQ), config)
    with pytest.raises(CheckpointError, match=r"do not fit a network of 32 channels x 1,2,2 and .* KL of factor 4"):
        read_weights(held(VQ), read_config(yaml_file("uncond_kl_std")))


def test_which_weights(yaml_file: Callable[..., Path]) -> None:
    average = {key: None for key in golden.config(VQ)["parameters"] | {"model_ema.decay": 0} if EMA[:9] in key}
    config, only = read_config(yaml_file(VQ)), held(VQ, **average)
    with pytest.raises(CheckpointError, match=r"found no model_ema\..*--weights online"):
        read_weights(only, config)
    assert read_weights(only, config, "online").kind == "online"
    trained = read_weights(held(VQ), dataclasses.replace(config, use_ema=False))
    assert trained.kind == "online"
    assert "use_ema: false" in trained.notes[0]
    with pytest.raises(ArgumentError, match="expected ema or online"):
        read_weights(only, config, "best")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_accepted_and_noted(yaml_file: Callable[..., Path], dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in held("uncond_kl_std").tensors.items() if value.is_floating_point()}
    weights = read_weights(held("uncond_kl_std", **state), read_config(yaml_file("uncond_kl_std")))
    assert all(tensor.dtype == torch.float32 for tensor in (weights.unet | weights.stage).values())
    assert str(dtype).removeprefix("torch.") in weights.notes[-1]
    assert weights.scale == pytest.approx(0.7321, rel=1e-2)


def test_a_null_label(yaml_file: Callable[..., Path]) -> None:
    config = read_config(yaml_file("class_crossattn_cfg"))
    with pytest.raises(CheckpointError, match=r"null label 11, expected one of 0 to 10"):
        with_null(config, 11)
    with pytest.raises(CheckpointError, match="a model without classes"):
        with_null(published("celeba256"), 0)


def bare(name: str, averaged: bool = False) -> Checkpoint:
    """A published model's checkpoint without any numbers; averaged: with nothing but the moving average of the denoiser."""
    config = published(name)
    parts = dataclasses.asdict(expected(config.spec))
    prefixes = {"unet": UNET, "stage": "first_stage_model.", "conditioner": "cond_stage_model."}
    state = {prefixes[part] + key: torch.empty(s, device="meta") for part, keys in parts.items() for key, s in keys.items()}
    if averaged:
        state = {EMA + k.removeprefix(UNET).replace(".", "") if k.startswith(UNET) else k: v for k, v in state.items()}
    return Checkpoint(Path("model.ckpt"), "0" * 64, state, {})


def test_published_models_are_recognised() -> None:
    assert identify(bare("ffhq256")) == ("celeba256", published("lsun_beds256"))
    assert identify(bare("bsr_sr", averaged=True)) == ("bsr_sr", published("bsr_sr"))
    with pytest.raises(CheckpointError, match=r"semantic_synthesis256 and semantic_synthesis512, .*--preset semantic_s"):
        identify(bare("semantic_synthesis512"))
    with pytest.raises(CheckpointError, match=r"none of the published models .*--config model\.yaml"):
        identify(held(VQ))
    with pytest.raises(ArgumentError, match="Did you mean 'celeba256'"):
        published("celeba")
