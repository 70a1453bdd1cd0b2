"""The networks in a checkpoint, by their keys, and a name for files that hold something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine.errors import ArgumentError, CheckpointError, did_you_mean
from export.read.checkpoint import Checkpoint

Tensors = Mapping[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]

WEIGHTS = {"ema": "target_network.", "online": "online_network."}
WRAPPERS = ("module.", "_forward_module.", "_orig_mod.")
# The constants that the reference registers beside a network; betas and post_coeff_3 are read, the rest follows from them.
BUFFERS = frozenset(
    [
        *("betas", "sqrt_alpha_bar", "minus_sqrt_alpha_bar", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
        *("post_variance", "post_log_variance_clipped", "post_coeff_1", "post_coeff_2", "post_coeff_3"),
    ]
)
UNET_MARKS = ("input_blocks.", "middle_block.", "output_blocks.", "temb.dense.", "down.0.block.", "mid.block_1.")
VAE_MARKS = ("enc.in_conv.", "enc.block_mod.", "dec.block_mod.", "dec.last_conv.")
STRANGERS = (
    ("model.diffusion_model.", "a latent-diffusion (Stable Diffusion) checkpoint"),
    ("first_stage_model.", "a latent-diffusion (Stable Diffusion) checkpoint"),
    ("quant_conv.", "an autoencoder of latent diffusion"),
    ("down_blocks.", "a diffusers UNet"),
    ("model.map_noise", "an EDM network"),
    ("model.map_layer0.", "an EDM network"),
    ("label_emb.", "a class-conditional network"),
    ("synthesis.", "a StyleGAN generator"),
    ("layer1.0.conv1.", "a ResNet classifier"),
    ("classifier.", "a classifier"),
    ("fc.", "a classifier"),
    ("blocks.0.attn.", "a transformer"),
    ("transformer.", "a transformer"),
)
SHOWN = 4


@dataclass(frozen=True)
class Network:
    """One noise-prediction network: UNet weights without their prefix, and the schedule constants beside them."""

    path: Path
    prefix: str
    unet: Tensors
    buffers: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """The weights of a VAE without their prefix, and where they came from."""

    checkpoint: Checkpoint
    prefix: str
    tensors: Tensors


@dataclass(frozen=True)
class Parts:
    """What a diffusion checkpoint holds. `networks` is keyed "ema" and "online", or "only" where there is just one."""

    networks: Mapping[str, Network]
    vae: Stage | None


def split(checkpoint: Checkpoint) -> Parts:
    """Sort the keys of a diffusion checkpoint; CheckpointError when it is something else or holds keys of none."""
    outer, tensors = _unwrap(checkpoint.tensors)
    groups = {name: _under(tensors, prefix) for name, prefix in WEIGHTS.items()}
    vae = _under(tensors, "vae.")
    stage = Stage(checkpoint, outer + "vae.", vae) if vae else None
    if any(groups.values()):
        known = (*WEIGHTS.values(), "vae.")
        strays = [key for key in tensors if not key.startswith(known)]
        if strays:
            raise CheckpointError(
                f"{checkpoint.path}: found unexpected keys {listed([outer + key for key in strays])}, expected keys of "
                f"{', '.join(known)} only; save the training wrapper's own state dict"
            )
        networks = {name: _network(checkpoint.path, outer + WEIGHTS[name], group) for name, group in groups.items() if group}
        return Parts(networks, stage)
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith("vae.")}
    if any(key.startswith("decoder.") for key in rest) or any(key.startswith(UNET_MARKS) for key in rest):
        return Parts({"only": _network(checkpoint.path, outer, rest)}, stage)
    raise CheckpointError(f"{checkpoint.path}: found {_describe(tensors)}")


def _unwrap(tensors: Tensors) -> tuple[str, dict[str, torch.Tensor]]:
    """Strip what data-parallel and compiling wrappers put before every key."""
    outer, result = "", dict(tensors)
    while wrapper := next((w for w in WRAPPERS if result and all(key.startswith(w) for key in result)), None):
        outer, result = outer + wrapper, _under(result, wrapper)
    return outer, result


def _under(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _network(path: Path, prefix: str, tensors: Tensors) -> Network:
    """A network from the keys of a diffusion module (`decoder.*` and buffers), or of a bare UNet."""
    buffers = {key: tensor for key, tensor in tensors.items() if key in BUFFERS}
    unet = {key: tensor for key, tensor in tensors.items() if key not in BUFFERS}
    inner = _under(unet, "decoder.")
    if not inner:
        return Network(path, prefix, unet, buffers)
    strays = [prefix + key for key in unet if not key.startswith("decoder.")]
    if strays:
        raise CheckpointError(
            f"{path}: found unexpected keys {listed(strays)}, expected {prefix}decoder.* and the schedule's constants; "
            "save the training wrapper's own state dict"
        )
    return Network(path, prefix + "decoder.", inner, buffers)


def select(parts: Parts, weights: str, path: Path) -> Network:
    """The network that `--weights` names; a file that holds just one has no choice to offer."""
    if weights not in WEIGHTS:
        raise ArgumentError(
            f"--weights: found {weights!r}, expected {' or '.join(WEIGHTS)}.{did_you_mean(weights, WEIGHTS)}"
        )
    network = parts.networks.get(weights) or parts.networks.get("only")
    if network is None:
        other = next(iter(parts.networks))
        raise CheckpointError(
            f"{path}: found no key of {WEIGHTS[weights]}* ({weights} weights), expected them; the file holds the {other} "
            f"weights: build with --weights {other}"
        )
    return network


def vae_stage(checkpoint: Checkpoint) -> Stage:
    """The VAE of a file given as --vae: its own keys, or those under `vae.`."""
    outer, tensors = _unwrap(checkpoint.tensors)
    for prefix in ("vae.", ""):
        inner = _under(tensors, prefix)
        if any(key.startswith(VAE_MARKS) for key in inner):
            return Stage(checkpoint, outer + prefix, inner)
    raise CheckpointError(
        f"{checkpoint.path}: found no VAE (keys {listed(list(tensors))}), expected enc.* and dec.* of the first stage; "
        "give --vae the checkpoint that the VAE's training wrote"
    )


def _describe(tensors: Tensors) -> str:
    """What a file without any diffusion network looks like, and what to do about it."""
    if any(key.removeprefix("vae.").startswith(VAE_MARKS) for key in tensors):
        return (
            "a DiffuseVAE first stage (VAE) alone, expected a diffusion network beside it or instead; give the diffusion "
            "checkpoint as the file to build from and this one with --vae"
        )
    what = next((text for mark, text in STRANGERS if any(mark in f".{key}" for key in tensors)), "another model")
    return (
        f"what looks like {what} (keys {listed(list(tensors))}), expected DiffuseVAE weights: online_network.*, "
        "target_network.*, decoder.* or the keys of a UNet; check that this is the right file"
    )


def listed(items: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def require(tensors: Tensors, expected: Shapes, path: Path, prefix: str, made_for: str) -> None:
    """Refuse weights that are not exactly `expected`: one CheckpointError that names missing, extra and misshapen keys."""
    missing = [f"{prefix}{key} (expected shape {list(expected[key])})" for key in expected if key not in tensors]
    extra = [prefix + key for key in tensors if key not in expected]
    misshapen = [
        f"{prefix}{key} (found shape {list(tensors[key].shape)}, expected {list(shape)})"
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    faults = [
        f"{kind} {listed(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{path}: found weights that do not fit {made_for}: {'; '.join(faults)}; the file is incomplete or belongs to "
            "another architecture: write the checkpoint again from the model that was trained"
        )
