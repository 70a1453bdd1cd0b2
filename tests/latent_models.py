"""The checkpoints that the golden vectors of latent diffusion belong to: tests/golden_ldm, rebuilt from their recipe."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.models.latent import spec as specs
from export.models.latent.conditioners import conditioner
from export.models.latent.first_stage import FirstStage
from export.models.openai.spec import OpenAIUNetSpec
from export.models.openai.unet import OpenAIUNet
from tests import golden_files
from tests.golden_models import weight

GOLDEN = Path(__file__).parent / "golden_ldm"
NAMES = (
    "uncond_vq_f4", "uncond_kl_std", "class_crossattn_cfg", "text_bert_cfg", "sr_concat", "inpaint_concat",
    "semantic_concat", "layout_depth",
)  # fmt: skip


def config(folder: str) -> dict[str, Any]:
    """config.json of one model."""
    return golden_files.config(GOLDEN / folder)


def expected(folder: str) -> dict[str, np.ndarray]:
    """What the reference computed with it."""
    return golden_files.expected(GOLDEN / folder)


def yaml_text(folder: str) -> str:
    """The configuration that lies beside its checkpoint."""
    return str(config(folder)["yaml"])


def checkpoint(folder: str) -> dict[str, Any]:
    """The checkpoint as Lightning writes it, without optimisers: every key of the training wrapper under "state_dict"."""
    return {"epoch": 7, "global_step": 250_000, "pytorch-lightning_version": "1.4.2", "state_dict": dict(_state(folder))}


@functools.cache
def _state(folder: str) -> dict[str, torch.Tensor]:
    cfg = config(folder)
    state = {key: weight(cfg["seed"], _named(cfg, key), shape) for key, shape in cfg["parameters"].items()}
    constants = _constants(cfg)
    for key, shape in cfg["buffers"].items():
        value = cfg["buffer_values"].get(key)
        kind = {"num_updates": torch.int32, "num_batches_tracked": torch.int64}.get(key.rpartition(".")[2], torch.float32)
        state[key] = constants[key] if value is None else torch.tensor(value, dtype=kind)
        assert list(state[key].shape) == shape, key
    return state


def _named(cfg: dict[str, Any], key: str) -> str:
    """The key that a key's value is drawn under."""
    for left, right in cfg["alias"].items():
        if key.startswith(left):
            return str(right + key.removeprefix(left))
    return key


def _constants(cfg: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The schedule's buffers, float32 [T]."""
    ends = cfg["linear_start"], cfg["linear_end"]
    assert cfg["beta_schedule"] == "linear"
    betas = np.linspace(ends[0] ** 0.5, ends[1] ** 0.5, cfg["T"]) ** 2
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    variance = betas * (1 - before) / (1 - bar)
    values = {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar),
        "log_one_minus_alphas_cumprod": np.log(1 - bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / bar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - bar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - bar),
    }
    return {key: torch.from_numpy(value.astype(np.float32)) for key, value in values.items()}


def spec(folder: str) -> specs.LatentSpec:
    """The architecture, from the fields of config.json."""
    cfg = config(folder)
    stage = _stage(cfg["first_stage"])
    return specs.LatentSpec(
        unet=_unet(cfg["unet"]),
        stage=stage,
        conditioner=_conditioner(cfg, stage),
        latent=tuple(cfg["latent"]),
        prediction=cfg["parameterization"],
        scale=cfg["scale_factor"],
    )


def _unet(cfg: dict[str, Any]) -> OpenAIUNetSpec:
    return OpenAIUNetSpec(
        in_channels=cfg["in_channels"],
        out_channels=cfg["out_channels"],
        model_channels=cfg["model_channels"],
        channel_mult=tuple(cfg["channel_mult"]),
        num_res_blocks=cfg["num_res_blocks"],
        attention_factors=tuple(cfg["attention_resolutions"]),
        num_heads=cfg.get("num_heads"),
        num_head_channels=cfg.get("num_head_channels"),
        context_dim=cfg.get("context_dim"),
        depth=cfg.get("transformer_depth", 1),
        scale_shift=cfg.get("use_scale_shift_norm", False),
        resample_blocks=cfg.get("resblock_updown", False),
    )


def _stage(cfg: dict[str, Any]) -> specs.FirstStageSpec:
    inner = cfg["ddconfig"]
    return specs.FirstStageSpec(
        in_channels=inner["in_channels"],
        out_channels=inner["out_ch"],
        channels=inner["ch"],
        channel_mult=tuple(inner["ch_mult"]),
        num_res_blocks=inner["num_res_blocks"],
        attn_resolutions=tuple(inner["attn_resolutions"]),
        resolution=inner["resolution"],
        z_channels=inner["z_channels"],
        embed_dim=cfg["embed_dim"],
        codes=cfg.get("n_embed"),
        attention=inner.get("attn_type") != "none",
    )


def _conditioner(cfg: dict[str, Any], stage: specs.FirstStageSpec) -> specs.Conditioner | None:
    said = cfg["cond_stage"]
    if said == "__is_unconditional__":
        return None
    if said == "__is_first_stage__":
        return specs.InpaintConditionerSpec(stage)
    kind, of = said["target"].rpartition(".")[2], said.get("params", {})
    if kind == "ClassEmbedder":
        return specs.ClassConditionerSpec(of["n_classes"], of["embed_dim"], null=of["n_classes"] - 1)
    if kind == "BERTEmbedder":
        return specs.TokenConditionerSpec(of["vocab_size"], of["max_seq_len"], of["n_embed"], of["n_layer"])
    if kind == "SpatialRescaler":
        return specs.RescalerConditionerSpec(of["in_channels"], of["n_stages"], of["out_channels"])
    assert kind == "Identity", kind
    return specs.ImageConditionerSpec(cfg["unet"]["in_channels"] - cfg["unet"]["out_channels"])


def networks(folder: str, raw: bool = False) -> tuple[OpenAIUNet, FirstStage, nn.Module | None]:
    """UNet, first stage and conditioner with their weights; raw: the trained UNet, also where there is an averaged one."""
    of, state = spec(folder), checkpoint(folder)["state_dict"]
    unet, stage = OpenAIUNet(of.unet), FirstStage(of.stage)
    condition = None if of.conditioner is None else conditioner(of.conditioner)
    prefix = "model.diffusion_model."
    trained = below(state, prefix)
    averaged = {key: state.get("model_ema." + f"diffusion_model.{key}".replace(".", "")) for key in trained}
    unet.load_state_dict(trained if raw or not config(folder)["use_ema"] else averaged)
    stage.load_state_dict(below(state, "first_stage_model."))
    if condition is not None:
        condition.load_state_dict(below(state, "cond_stage_model."))
    for module in (unet, stage, condition):
        if module is not None:
            module.eval().requires_grad_(False)
    return unet, stage, condition


def below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The part of a checkpoint below a prefix."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def given(folder: str) -> dict[str, np.ndarray]:
    """What its runs were conditioned on, as a bundle takes it."""
    arrays = expected(folder)
    if "image" in arrays:
        return {"known": 2 * arrays["image"] - 1, "mask": arrays["mask"]}
    names = {"labels": "label", "tokens": "tokens", "segmentation": "segmentation", "LR_image": "low_resolution"}
    found = {name: arrays[key] for key, name in names.items() if key in arrays}
    return {name: value.astype(np.int64) if value.dtype.kind in "iu" else value for name, value in found.items()}


def build_latent(folder: str, into: Path, **request: Any) -> Path:
    """Write checkpoint and YAML of one model into a folder, and build its bundle there."""
    from export.build import build

    return build(request_of(folder, into, out=into / f"{folder}.bundle", **request)).path


def request_of(folder: str, into: Path, **request: Any) -> Any:
    """Write checkpoint and YAML of one model into a folder: what a build is asked for."""
    from export.build import Request

    file, config_file = into / f"{folder}.ckpt", into / f"{folder}.yaml"
    torch.save(checkpoint(folder), file)
    config_file.write_text(yaml_text(folder))
    options: dict[str, Any] = {"config": config_file}
    arrays = expected(folder)
    if "null_tokens" in arrays:
        options["null_tokens"] = " ".join(map(str, arrays["null_tokens"].tolist()))
    if "null_label" in arrays:
        options["null_label"] = int(arrays["null_label"])
    return Request(file, options=options, **request)
