"""The checkpoints that the golden vectors of guided diffusion belong to: tests/golden_adm, rebuilt from their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.read.checkpoint import Checkpoint
from tests import golden_files
from tests.golden_models import weight

GOLDEN = Path(__file__).parent / "golden_adm"
NAMES = ("uncond_learned", "class_learned", "cosine_neworder", "upsample")


def config(folder: str) -> dict[str, Any]:
    """config.json of one model."""
    return golden_files.config(GOLDEN / folder)


def expected(folder: str) -> dict[str, np.ndarray]:
    """What the reference computed with it."""
    return golden_files.expected(GOLDEN / folder)


CHAINS = [(folder, chain) for folder in NAMES for chain in config(folder)["chains"]]


def state_dict(folder: str) -> dict[str, torch.Tensor]:
    """The plain state dict that the reference saves."""
    return seeded(config(folder))


def seeded(cfg: dict[str, Any], scale: dict[str, float] | None = None) -> dict[str, torch.Tensor]:
    """The weights that one entry of a config.json describes; scale: factors by the ends of keys, in place of its own."""
    factors = cfg.get("scale", {}) if scale is None else scale
    shapes = {**cfg["parameters"], **{key: shape for key, shape in cfg.get("buffers", {}).items() if shape}}
    return {
        key: weight(cfg["seed"], key, shape) * next((f for ending, f in factors.items() if key.endswith(ending)), 1.0)
        for key, shape in shapes.items()
    }


def held(folder: str, **changes: torch.Tensor | None) -> Checkpoint:
    """The checkpoint in memory, with keys (dots are written as __) changed or, for None, taken out."""
    state: dict[str, Any] = {**state_dict(folder), **{key.replace("__", "."): value for key, value in changes.items()}}
    return Checkpoint(Path(f"{folder}.pt"), "0" * 64, {k: v for k, v in state.items() if v is not None}, {})


def said(folder: str) -> dict[str, Any]:
    """What must be said of the model beside its weights, as `options` of a build request."""
    arch, process = config(folder)["arch"], config(folder)["diffusion"]
    by_width = arch["num_head_channels"] != -1
    heads = {"head_channels": arch["num_head_channels"]} if by_width else {"heads": arch["num_heads"]}
    small = {"small_size": expected(folder)["low_res"].shape[-1]} if "low_res" in expected(folder) else {}
    return {
        **heads, **small, "image_size": arch["image_size"], "noise_schedule": process["noise_schedule"],
        "diffusion_steps": process["steps"], "rescale_timesteps": process["rescale_timesteps"],
        "attention_order": "new" if arch["use_new_attention_order"] else "legacy",
    }  # fmt: skip


def given(folder: str) -> dict[str, np.ndarray]:
    """The inputs of its chains, as a bundle takes them."""
    arrays, classes = expected(folder), config(folder)["arch"]["num_classes"]
    found = {"label": arrays["y"]} if classes is not None else {}
    return found | ({"low_resolution": arrays["low_res"]} if "low_res" in arrays else {})


def setting(folder: str, chain: str) -> dict[str, Any]:
    """The options of `sample` that a chain stands for."""
    of, timesteps = config(folder)["chains"][chain], expected(folder)[f"{chain}_timesteps"][::-1].tolist()
    if of["method"] == "ddpm":
        return {"method": "ddpm", "variance": "learned_range", "timesteps": timesteps}
    return {"method": "ddim_clipped", "eta": of["eta"], "timesteps": timesteps}


def noise(folder: str, chain: str) -> np.ndarray:
    """The noise of its steps; what the last one would add is left out by the reference."""
    steps = len(expected(folder)[f"{chain}_timesteps"])
    drawn = expected(folder)["noise"]
    return drawn[:steps]


def states(folder: str, chain: str) -> dict[int, np.ndarray]:
    """{row: the state behind it} of those that are kept."""
    arrays, steps = expected(folder), len(expected(folder)[f"{chain}_timesteps"])
    if f"{chain}_states" in arrays:
        return dict(enumerate(arrays[f"{chain}_states"]))
    return dict(zip((0, steps // 2 - 1, steps - 1), arrays[f"{chain}_some"], strict=True))


def tolerance(folder: str, chain: str) -> float:
    """Three times what float32 itself costs the reference's chain."""
    return float(3 * config(folder)["float32_floor"][chain])


def build_adm(folder: str, into: Path, **request: Any) -> Path:
    """Write the checkpoint of one model into a folder, and build its bundle there."""
    from export.build import Request, build

    file = into / f"{folder}.pt"
    torch.save(state_dict(folder), file)
    options = {**said(folder), **request.pop("options", {})}
    return build(Request(file, out=into / f"{folder}.bundle", options=options, **request)).path
