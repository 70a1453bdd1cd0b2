"""The networks in a checkpoint, by their keys, and a name for files that hold something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine.errors import ArgumentError, CheckpointError, did_you_mean
from export.read.checkpoint import Checkpoint
from export.read.wrappers import BUFFERS, SeenThrough, see_through

Tensors = Mapping[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]

WEIGHTS = {"ema": "target_network.", "online": "online_network."}
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
    keys = see_through(checkpoint.tensors, checkpoint.path)
    tensors = keys.tensors
    groups = {name: _under(tensors, prefix) for name, prefix in WEIGHTS.items()}
    vae = _under(tensors, "vae.")
    stage = Stage(checkpoint, keys.prefix("vae."), vae) if vae else None
    if any(groups.values()):
        known = (*WEIGHTS.values(), "vae.")
        strays = [keys.spelled[key] for key in tensors if not key.startswith(known)]
        if strays:
            raise CheckpointError(
                f"{checkpoint.path}: found unexpected keys {listed(strays)}, expected keys of {', '.join(known)} only; save "
                "the training wrapper's own state dict"
            )
        networks = {name: _network(checkpoint.path, keys, WEIGHTS[name], group) for name, group in groups.items() if group}
        return Parts(networks, stage)
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith("vae.")}
    if any(key.startswith("decoder.") for key in rest) or any(key.startswith(UNET_MARKS) for key in rest):
        return Parts({"only": _network(checkpoint.path, keys, "", rest)}, stage)
    raise CheckpointError(f"{checkpoint.path}: found {_describe(keys)}")


def _under(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _network(path: Path, keys: SeenThrough, prefix: str, tensors: Tensors) -> Network:
    """A network from the keys of a diffusion module (`decoder.*` and buffers), or of a bare UNet."""
    buffers = {key: tensor for key, tensor in tensors.items() if key in BUFFERS}
    unet = {key: tensor for key, tensor in tensors.items() if key not in BUFFERS}
    inner = _under(unet, "decoder.")
    if not inner:
        return Network(path, keys.prefix(prefix), unet, buffers)
    strays = [keys.spelled[prefix + key] for key in unet if not key.startswith("decoder.")]
    if strays:
        raise CheckpointError(
            f"{path}: found unexpected keys {listed(strays)}, expected {keys.prefix(prefix)}decoder.* and the schedule's "
            "constants; save the training wrapper's own state dict"
        )
    return Network(path, keys.prefix(f"{prefix}decoder."), inner, buffers)


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
    keys = see_through(checkpoint.tensors, checkpoint.path)
    for prefix in ("vae.", ""):
        inner = _under(keys.tensors, prefix)
        if any(key.startswith(VAE_MARKS) for key in inner):
            return Stage(checkpoint, keys.prefix(prefix), inner)
    raise CheckpointError(
        f"{checkpoint.path}: found no VAE (keys {listed(list(keys.spelled.values()))}), expected enc.* and dec.* of the "
        "first stage; give --vae the checkpoint that the VAE's training wrote"
    )


def _describe(keys: SeenThrough) -> str:
    """What a file without any diffusion network looks like, and what to do about it."""
    tensors = list(keys.spelled.values())
    if any(key.removeprefix("vae.").startswith(VAE_MARKS) for key in keys.tensors):
        return (
            "a DiffuseVAE first stage (VAE) alone, expected a diffusion network beside it or instead; give the diffusion "
            "checkpoint as the file to build from and this one with --vae"
        )
    what = next((text for mark, text in STRANGERS if any(mark in f".{key}" for key in tensors)), "another model")
    return (
        f"what looks like {what} (keys {listed(tensors)}), expected DiffuseVAE weights: online_network.*, "
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


def size_of(tensors: Tensors, key: str, axis: int, path: Path, kind: str, source: str) -> int:
    """A dimension of a weight; CheckpointError where there is none. kind, source: "a UNet", and the code that saves one."""
    tensor = tensors.get(key)
    if tensor is None or tensor.ndim <= axis:
        found = "no" if tensor is None else f"shape {list(tensor.shape)} under"
        raise CheckpointError(
            f"{path}: found {found} {key}, expected {kind}'s weights there; the file is incomplete or not a checkpoint "
            f"of {source}"
        )
    return tensor.shape[axis]
