"""The checkpoints that the golden vectors belong to: the five tiny models of tests/golden, rebuilt from their recipe."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import golden_files

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("form1", "form2", "form1_zcond", "uncond", "form1_ddim_unet")


def config(name: str) -> dict[str, Any]:
    """config.json of one model."""
    return golden_files.config(GOLDEN / name)


def expected(name: str) -> dict[str, np.ndarray]:
    """What the reference computed with it."""
    return golden_files.expected(GOLDEN / name)


def weight(seed: int, key: str, shape: list[int]) -> torch.Tensor:
    """One tensor by the recipe in tests/golden/README.md."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    a = rng.standard_normal(shape)
    if len(shape) > 1:
        a = a / np.sqrt(np.prod(shape[1:]))
    elif key.endswith(("bias", "running_mean")):
        a = 0.05 * a
    else:
        a = 1 + 0.05 * a
    return torch.from_numpy(np.asarray(a, np.float32))


def buffers(cfg: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The schedule's constants as the reference registers them, float64 [T]."""
    betas = torch.linspace(cfg["beta1"], cfg["beta2"], cfg["T"]).double()
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    variance = betas * (1 - before) / (1 - bar)
    values = {
        "betas": betas,
        "sqrt_alpha_bar": bar.sqrt(),
        "minus_sqrt_alpha_bar": (1 - bar).sqrt(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "post_variance": variance,
        "post_log_variance_clipped": torch.cat([variance[1:2], variance[1:]]).log(),
        "post_coeff_1": betas * before.sqrt() / (1 - bar),
        "post_coeff_2": (1 - betas).sqrt() * (1 - before) / (1 - bar),
    }
    values["post_coeff_3"] = 1 - values["post_coeff_2"]
    return values


def state_dict(name: str) -> dict[str, torch.Tensor]:
    """Every key of the training wrapper: both networks, their constants, and the VAE where there is one."""
    cfg = config(name)
    state = {key: weight(cfg["seed"], key, shape) for key, shape in cfg["parameters"].items()}
    constants = buffers(cfg)
    state |= {key: constants[key.split(".", 1)[1]] for key in cfg["buffers"]}
    return state


def write_checkpoint(name: str, path: Path) -> Path:
    """Write one model as Lightning does, and return the file."""
    checkpoint = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.4.9",
        "state_dict": state_dict(name),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "x.ckpt", "best_model_score": None}},
        "optimizer_states": [{"state": {0: {"step": 1}}, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999)}]}],
        "lr_schedulers": [],
    }
    torch.save(checkpoint, path)
    return path


def build_options(name: str) -> dict[str, Any]:
    """What must be said about this model beside its weights, as `options` of a build request."""
    cfg = config(name)
    size = {"image_size": cfg["res"]} if cfg["type"] == "uncond" else {}
    return {"heads": cfg["n_heads"], "variance": cfg["variance"], "name": name, **size}


def build_golden(name: str, folder: Path) -> Path:
    """Build the bundle of one model inside `folder` and return it."""
    from export.build import Request, build

    request = Request(
        write_checkpoint(name, folder / f"{name}.ckpt"),
        out=folder / f"{name}.bundle",
        options=build_options(name),
    )
    return build(request).path
