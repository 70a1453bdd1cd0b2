"""Checkpoint files of the golden model form1, in the shapes that people save them in."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch

from tests import golden_models

State = dict[str, Any]
EMA, ONLINE = "target_network", "online_network"


@functools.cache
def golden() -> State:
    """Both networks with their constants, and the VAE."""
    return golden_models.state_dict("form1")


def under(prefix: str, state: State | None = None) -> State:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(prefix): t for k, t in (state or golden()).items() if k.startswith(prefix)}


def whole(network: str) -> State:
    """One network with its constants, and the VAE: a model of its own."""
    return under(f"{network}.") | {k: t for k, t in golden().items() if k.startswith("vae.")}


def parameters(network: str) -> State:
    """What an average of the parameters holds: no constants, no VAE."""
    return {k: t for k, t in under(f"{network}.").items() if k.startswith("decoder.")}


def flat() -> State:
    """Two networks in one dict, each under a name of its own."""
    return {f"{n}.{k}": t for n, m in (("network", ONLINE), ("ema_network", EMA)) for k, t in under(f"{m}.").items()}


def constants() -> State:
    """What the schedule registers."""
    return {k: t for k, t in under(f"{EMA}.").items() if not k.startswith("decoder.")}


def loose() -> State:
    """Averaged network and VAE without constants."""
    return parameters(EMA) | {k: t for k, t in golden().items() if k.startswith("vae.")}


def renamed(pattern: str, by: str) -> State:
    """Everything, with other keys."""
    return {re.sub(pattern, by, key): tensor for key, tensor in golden().items()}


def save(folder: Path, content: Any, **options: Any) -> Path:
    """Write a file with torch.save, and return it."""
    torch.save(content, folder / "a.ckpt", **options)
    return folder / "a.ckpt"
