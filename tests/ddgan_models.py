"""The checkpoint that the golden vectors of a denoising diffusion GAN belong to: tests/golden_adm/ddgan, from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.read.checkpoint import Checkpoint
from tests import golden_files
from tests.golden_models import weights_of

FOLDER = Path(__file__).parent / "golden_adm" / "ddgan"
SAID = {"image_size": 16, "diffusion_steps": 4}  # what must be said beside its weights


def config() -> dict[str, Any]:
    """config.json."""
    return golden_files.config(FOLDER)


def expected() -> dict[str, np.ndarray]:
    """What the reference computed."""
    return golden_files.expected(FOLDER)


def state_dict() -> dict[str, torch.Tensor]:
    """The plain state dict that the reference saves; its keys begin with module."""
    return weights_of(config())


def held(**changes: torch.Tensor | None) -> Checkpoint:
    """The checkpoint in memory, with keys (dots are written as __) changed or, for None, taken out."""
    state: dict[str, Any] = {**state_dict(), **{key.replace("__", "."): value for key, value in changes.items()}}
    return Checkpoint(Path("netG.pth"), "0" * 64, {k: v for k, v in state.items() if v is not None}, {})


def latents() -> np.ndarray:
    """The latents as a bundle takes them, [N, steps, nz]."""
    return np.ascontiguousarray(expected()["z"].transpose(1, 0, 2))


def given() -> dict[str, np.ndarray]:
    """Start, noise and latents of the chain."""
    return {"x_T": expected()["x_T"], "noise": expected()["noise"], "z": latents()}


def tolerance() -> float:
    """Three times what float32 itself costs the reference's chain, and no less than it may cost any."""
    return max(3 * float(config()["float32_floor"]["states"]), 1e-5)


def build_ddgan(into: Path, **request: Any) -> Path:
    """Write the checkpoint into a folder, and build its bundle there."""
    from export.build import Request, build

    file = into / "netG.pth"
    torch.save(state_dict(), file)
    return build(Request(file, out=into / "ddgan.bundle", options=SAID, **request)).path
