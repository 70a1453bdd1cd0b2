"""Latent diffusion models in diffusers' folders: read into the modules here, which compute what diffusers' own do."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError
from export.families.latent.diffusers_folder import Folder, is_folder, read_folder
from export.families.latent.weights import networks
from tests import latent_models as golden

diffusers = pytest.importorskip("diffusers", reason="the package diffusers is not installed")
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195,
             "num_train_timesteps": 1000, "clip_sample": False}  # fmt: skip
UNET = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64, 96), "layers_per_block": 1}
STAGE = {"block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2, "sample_size": 16}  # fmt: skip

EMBEDDINGS = {"token_emb.": "model.embed_tokens.", "pos_emb.emb.": "model.embed_positions.", "norm.": "model.layer_norm."}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny layers: on busy cores the threads would wait for each other at every one


def shaken(module: Any) -> Any:
    """With norms and biases that are not those of a new module, which are ones and zeros."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


def unet(**changes: Any) -> Any:
    """An unconditional denoiser that attends at its two deeper levels."""
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    return shaken(diffusers.UNet2DModel(**{**UNET, **blocks, "attention_head_dim": 16, **changes}))


def shifted_unet() -> Any:
    """Scale and shift of the norms by time, one head at every level."""
    shift = {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}
    return unet(attention_head_dim=None, layers_per_block=2, **shift)


def text_unet(**changes: Any) -> Any:
    """A denoiser that attends to text at its two upper levels, by four heads."""
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4, "cross_attention_dim": 24, "in_channels": 4, "out_channels": 4,
    }  # fmt: skip
    return shaken(diffusers.UNet2DConditionModel(**{**UNET, **blocks, **changes}))


def vq(**changes: Any) -> Any:
    """A first stage with a codebook."""
    return shaken(diffusers.VQModel(**{**STAGE, "num_vq_embeddings": 16, "scaling_factor": 1.0, **changes}))


def kl(**changes: Any) -> Any:
    """A KL first stage that attends at the lower of two levels."""
    blocks = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    return shaken(diffusers.AutoencoderKL(**{**STAGE, **blocks, "latent_channels": 4, **changes}))


def written(path: Path, pipeline: str, denoiser: Any, stage: Any, scheduler: dict[str, Any] | None = None) -> Path:
    """The folder as the pipeline's save_pretrained lays it out."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.4.2"}
    for name, part in (("unet", denoiser), ("vqvae", stage)):
        part.save_pretrained(path / name)
        index[name] = ["diffusers", type(part).__name__]
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | (scheduler or {})))
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def with_bert(path: Path) -> Path:
    """The golden text encoder beside the rest, under the names that LDMBertModel has."""
    state = {}
    for key, tensor in golden.checkpoint("text_bert_cfg")["state_dict"].items():
        if not key.startswith("cond_stage_model.transformer."):
            continue
        name = key.removeprefix("cond_stage_model.transformer.")
        words = name.split(".")
        if words[0] == "attn_layers":
            layer, attends = divmod(int(words[2]), 2)
            part = ".".join(words[3:-1])
            own = {"0": "self_attn_layer_norm", **{f"1.to_{x}": f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")}}
            own = {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"} if attends else own
            name = f"model.layers.{layer}.{own[part]}.{words[-1]}"
        for ours, theirs in EMBEDDINGS.items():
            name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
        state[name] = tensor
    (path / "bert").mkdir()
    save_file(state, path / "bert" / "model.safetensors")
    config = {"d_model": 24, "encoder_ffn_dim": 96, "encoder_layers": 2, "vocab_size": 99, "max_position_embeddings": 12,
              "architectures": ["LDMBertModel"], "torch_dtype": "float32", "return_dict": True}  # fmt: skip
    (path / "bert" / "config.json").write_text(json.dumps(config))
    edit(path / "model_index.json", bert=["latent_diffusion", "LDMBertModel"], tokenizer=["transformers", "BertTokenizer"])
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def loaded(folder: Folder) -> Any:
    """The modules with their weights."""
    modules = networks(folder.config.spec)
    weights = folder.weights
    for module, state in zip(modules, (weights.unet, weights.stage, weights.conditioner), strict=True):
        if module is not None:
            module.load_state_dict(state, assign=True)
            module.eval().requires_grad_(False)
    return modules


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("pipeline", "denoiser", "condition"),
    [
        ("LDMPipeline", unet, 0),
        ("LDMPipeline", shifted_unet, 0),
        ("LDMSuperResolutionPipeline", lambda: unet(in_channels=6), 3),
    ],
)
def test_a_folder_computes_what_diffusers_does(
    tmp_path: Path, pipeline: str, denoiser: Callable[[], Any], condition: int
) -> None:
    theirs, stage = denoiser(), vq()
    path = written(tmp_path / "m", pipeline, theirs, stage)
    assert is_folder(path)
    folder = read_folder(path)
    network, first, _ = loaded(folder)
    x, t = drawn(2, 3 + condition, 8, 8), torch.tensor([7, 800])
    assert_same(network(x, t), theirs(x, t).sample)
    image, latent = drawn(1, 3, 16, 16), 0.1 * drawn(1, 3, 8, 8)
    assert_same(first.encode(image), stage.encode(image).latents)
    assert_same(first.decode(latent), stage.decode(latent).sample)
    assert folder.config.spec.latent == (3, 8, 8)
    assert folder.config.schedule.numbers == {"start": 0.0015, "end": 0.0195}
    assert set(folder.files) == {"unet", "vqvae"}


def test_text_to_image(tmp_path: Path) -> None:
    theirs, stage = text_unet(transformer_layers_per_block=2), kl()
    folder = read_folder(with_bert(written(tmp_path / "m", "LDMTextToImagePipeline", theirs, stage)))
    network, first, encoder = loaded(folder)
    x, t, context = drawn(2, 4, 8, 8), torch.tensor([7, 800]), drawn(2, 5, 24)
    assert_same(network(x, t, context), theirs(x, t, context).sample)
    image, latent = drawn(1, 3, 16, 16), drawn(1, 4, 8, 8)
    assert_same(first.moments(image), stage.encode(image).latent_dist.parameters)
    assert_same(first.decode(latent), stage.decode(latent).sample)
    _, _, reference = golden.networks("text_bert_cfg")
    tokens = torch.arange(12)[None]
    assert torch.equal(encoder(tokens), reference(tokens))
    assert (folder.config.spec.scale, folder.config.tokenizer) == (0.18215, False)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed, which LDMBertModel is made of")
def test_the_text_encoder_computes_what_diffusers_does(tmp_path: Path) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    config = {"d_model": 24, "encoder_ffn_dim": 96, "encoder_layers": 2, "vocab_size": 99}
    theirs = LDMBertModel(LDMBertConfig(**config, max_position_embeddings=12, init_std=0.3))
    path = written(tmp_path / "m", "LDMTextToImagePipeline", text_unet(), kl())
    shaken(theirs).save_pretrained(path / "bert")
    edit(path / "model_index.json", bert=["latent_diffusion", "LDMBertModel"], tokenizer=["transformers", "BertTokenizer"])
    _, _, encoder = loaded(read_folder(path))
    tokens = torch.randint(0, 99, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert_same(encoder(tokens), theirs(tokens)[0])


def test_former_names_and_files(tmp_path: Path) -> None:
    """Attention was query, key, value and proj_attn once, files were pickles, and first stages had no scaling_factor."""
    path = written(tmp_path / "m", "LDMPipeline", unet(), vq())
    now = read_folder(path)
    for name in ("unet", "vqvae"):
        file = path / name / "diffusion_pytorch_model.safetensors"
        state = load_file(file)
        for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
            state = {key.replace(new, old): tensor for key, tensor in state.items()}
        torch.save(state, file.with_suffix(".bin"))
        file.unlink()
    edit(path / "vqvae" / "config.json", scaling_factor=None)
    then = read_folder(path)
    assert then.config == now.config
    assert all(torch.equal(tensor, now.weights.unet[key]) for key, tensor in then.weights.unet.items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("plain") / "m", "LDMPipeline", unet(), vq())


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "_class_name = 'StableDiffusionPipeline'"),
        ("model_index.json", {"unet": ["os", "system"]}, "[library, UNet2DModel or UNet2DConditionModel]"),
        ("model_index.json", {"_class_name": "LDMSuperResolutionPipeline"}, "expected (4, 3, None)"),
        ("unet/config.json", {"flip_sin_to_cos": False}, "flip_sin_to_cos = False, expected True"),
        ("unet/config.json", {"num_class_embeds": 10}, "num_class_embeds = 10, expected null"),
        ("unet/config.json", {"a_later_field": 1}, "a_later_field, which may change the network"),
        ("unet/config.json", {"attention_head_dim": 24}, "num_head_channels = 24, expected a divisor of 64"),
        ("unet/config.json", {"block_out_channels": [32, 48, 96]}, "multiples of the first, 32"),
        ("unet/config.json", {"up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}, "the same levels to attend"),
        ("unet/config.json", {"down_block_types": ["ResnetDownsampleBlock2D"] * 3}, "blocks of another kind"),
        ("unet/config.json", {"layers_per_block": 2}, "weights that do not fit the config.json beside it: missing"),
        ("unet/config.json", {"resnet_time_scale_shift": "scale_shift"}, "the middle attends without a norm"),
        ("unet/config.json", {"sample_size": 9}, "multiples of 4"),
        ("vqvae/config.json", {"num_vq_embeddings": 17}, "misshapen quantize.embedding.weight"),
        ("vqvae/config.json", {"latents_mean": [0.0]}, "latents_mean = [0.0], expected null"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'"),
    ],
)
def test_a_folder_is_refused(plain: Path, file: str, changes: dict[str, Any], says: str) -> None:
    before = (plain / file).read_text()
    edit(plain / file, **changes)
    try:
        with pytest.raises(CheckpointError) as refused:
            read_folder(plain)
    finally:
        (plain / file).write_text(before)
    assert says in str(refused.value)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m", "LDMPipeline", unet(), vq())
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file(state | {"conv_in.bias": torch.full((32,), float("nan"))}, file)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 'conv_in\.bias'"):
        read_folder(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"unet: found no weights, expected diffusion_pytorch_model\.safetensors"):
        read_folder(path)
