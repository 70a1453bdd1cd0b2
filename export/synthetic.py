"""Random weights in a published configuration, to try and time with what has not been trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.errors import ArgumentError
from engine.solver.schedule import Schedule
from export.families.adm.architecture import Options, infer
from export.families.adm.graphs import roles as adm_roles
from export.families.adm.published import PUBLISHED as ADM
from export.families.adm.published import published as published_adm
from export.families.diffusevae.presets import preset
from export.families.latent.graphs import roles
from export.families.latent.published import published
from export.families.latent.weights import AVERAGE, AVERAGED, CONDITIONER, SCALE, STAGE, UNET, expected, networks
from export.graphs.roles import Role
from export.models.layouts import to_checkpoint
from export.models.openai.unet import OpenAIUNet
from export.models.unet import UNet, UNetSpec
from export.models.unset import unset
from export.models.vae import VAE


def random_checkpoint(
    name: str = "cifar10",
    seed: int = 0,
    *,
    formulation: int | None = 1,
    layout: str = "openai",
    z_conditioned: bool = False,
    online: bool = True,
) -> dict[str, Any]:
    """A checkpoint of the preset `name` in the reference's key layout, as Lightning writes it, ready for torch.save.

    Weights are Gaussian with variance 1 / fan-in, biases 0.05 N(0, 1), norm scales 1 + 0.05 N(0, 1): no layer is zero, so
    that outputs depend on all of them. `online=False` leaves the trained network's copy out (half the size). Build it
    with `--preset NAME`.
    """
    known = preset(name)
    if formulation not in (1, 2, None):
        raise ArgumentError(f"formulation: found {formulation!r}, expected 1, 2 or None (unconditional)")
    heads = known.heads(formulation is not None) or 1
    base, blocks = known.widths[0]
    spec = UNetSpec(
        layout=layout,
        image_size=known.image_size,
        in_channels=3 if formulation is None else 6,
        out_channels=3,
        model_channels=base,
        channel_mult=known.channel_mult,
        blocks_per_level=blocks,
        attention_levels=known.attention_levels(layout),
        heads=heads,
        z_dim=known.vae.z_dim if z_conditioned else None,
        scale_shift=z_conditioned,
    )
    generator = torch.Generator().manual_seed(seed)
    schedule = Schedule.from_recipe("linear", known.T, start=known.beta_1, end=known.beta_T)
    constants = schedule_constants(schedule, formulation)
    with torch.device("meta"):
        unet, vae = UNet(spec), VAE(known.vae)
    state: dict[str, torch.Tensor] = {}
    for network in ("online_network", "target_network") if online else ("target_network",):
        weights = to_checkpoint(unet, _random(unet, generator))
        state |= {f"{network}.{key}": value for key, value in constants.items()}
        state |= {f"{network}.decoder.{key}": value for key, value in weights.items()}
    if formulation is not None:
        state |= {f"vae.{key}": value for key, value in _random(vae, generator).items()}
    return {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "1.4.9", "state_dict": state}


def random_latent_checkpoint(name: str, seed: int = 0) -> dict[str, Any]:
    """A checkpoint of the published latent diffusion model `name` in CompVis' layout, ready for torch.save.

    Its average, where training kept one, is the trained network itself, so that both are stored once. Build it with
    `--preset NAME`.
    """
    config, generator = published(name), torch.Generator().manual_seed(seed)
    shapes = expected(config.spec)
    state: dict[str, torch.Tensor] = {"betas": torch.from_numpy(config.schedule.schedule().betas.copy())}
    for prefix, part in ((UNET, shapes.unet), (STAGE, shapes.stage), (CONDITIONER, shapes.conditioner)):
        state |= {prefix + key: _random_tensor(key, shape, generator) for key, shape in part.items()}
    if config.use_ema:
        state |= {AVERAGE + AVERAGED + key.replace(".", ""): state[UNET + key] for key in shapes.unet}
    if config.scale_by_std:
        state[SCALE] = torch.tensor(0.2)
    return {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "1.4.2", "state_dict": state}


def random_adm_checkpoint(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The plain state dict of the published guided diffusion model `name`, ready for torch.save and known by its shapes."""
    return _random(unset(lambda: OpenAIUNet(published_adm(name).unet)), torch.Generator().manual_seed(seed))


def random_network(name: str, graph: str, seed: int = 0) -> Role:
    """One network of a published model of latent or guided diffusion alone, with random weights: its "denoiser", or of
    latent diffusion its "first_stage_decoder"."""
    if name in ADM:
        return _random_adm_network(name, graph, seed)
    spec = published(name).spec
    unet, stage, _ = networks(spec)
    used: nn.Module = stage if graph == "first_stage_decoder" else unet
    _fill(used, seed)
    return roles(spec, unet, stage, None, 1000)[graph]


def _random_adm_network(name: str, graph: str, seed: int) -> Role:
    of = infer(published_adm(name).shape, Path(name), Options())
    unet = unset(lambda: OpenAIUNet(of.unet))
    _fill(unet, seed)
    return adm_roles(of, unet)[graph]


def _fill(module: nn.Module, seed: int) -> None:
    """Give a module random weights, ready to be used."""
    module.load_state_dict(_random(module, torch.Generator().manual_seed(seed)), assign=True)
    module.eval().requires_grad_(False)


def schedule_constants(schedule: Schedule, formulation: int | None) -> dict[str, torch.Tensor]:
    """The buffers, float64 [T], from which a build reads schedule and formulation."""
    betas = torch.from_numpy(schedule.betas.copy())
    constants = {"betas": betas}
    if formulation == 2:
        bar = torch.cumprod(1 - betas, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
        # DiffuseVAE appendix, formulation 2: the posterior mean's coefficient of the reconstruction.
        constants["post_coeff_3"] = 1 - (1 - betas).sqrt() * (1 - before) / (1 - bar)
    return constants


def _random(module: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors for every entry of a module's state dict."""
    return {key: _random_tensor(key, tuple(tensor.shape), generator) for key, tensor in module.state_dict().items()}


def _random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.05 * values + (0.0 if key.endswith("bias") else 1.0)
