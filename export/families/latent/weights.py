"""The weights of a CompVis checkpoint, sorted into the networks of its configuration and checked against both.

Lightning saves everything that was in memory: the trained network, its moving average under names without dots, losses,
the schedule's constants. What is none of the networks' and not known to be useless is refused, not dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from engine.errors import ArgumentError, CheckpointError, did_you_mean
from export.families.latent.config import Config, describe
from export.models.latent.conditioners import conditioner
from export.models.latent.first_stage import FirstStage
from export.models.latent.spec import LatentSpec
from export.models.openai.unet import OpenAIUNet
from export.models.unset import shapes_of, unset
from export.read import schedule
from export.read.checkpoint import Checkpoint, as_float32, stored_as
from export.read.parts import WEIGHTS, Shapes, listed, require

UNET, STAGE, CONDITIONER, AVERAGE = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "model_ema."
AVERAGED = "diffusion_model"  # what a name in the average begins with
SCALE = "scale_factor"
COUNTERS = (f"{AVERAGE}decay", f"{AVERAGE}num_updates")
# Of training, or unused by inference: a second first stage only encodes, BERT's words are not asked for.
USELESS = (
    *(f"{STAGE}{name}" for name in ("loss.", "model_ema.", "colorize")),
    *(f"{CONDITIONER}{name}" for name in ("loss.", "decoder.", "post_quant_conv.", "quantize.", "transformer.to_logits.")),
)
CONSTANTS = frozenset(
    [
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
        *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance"),
        *("posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar"),
        "cond_ids",
    ]
)
AGREES = 1e-5  # relative: float32 products of 1 - beta in another order


@dataclass(frozen=True)
class Expected:
    """The keys of each network, without its prefix in a checkpoint, with their shapes."""

    unet: Shapes
    stage: Shapes
    conditioner: Shapes


@dataclass(frozen=True)
class Weights:
    """Float32 weights by the modules' own keys, and what else the file decides.

    conditioner is empty where nothing of it is trained; scale divides a latent before it is decoded; kind is "ema" or
    "online"; notes are sentences on what could surprise.
    """

    unet: dict[str, torch.Tensor]
    stage: dict[str, torch.Tensor]
    conditioner: dict[str, torch.Tensor]
    scale: float
    kind: str
    notes: tuple[str, ...]


def claims(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the keys are those of a latent diffusion model's checkpoint."""
    return all(any(key.startswith(prefix) for key in tensors) for prefix in (("model.diffusion_model.", AVERAGE), STAGE))


def networks(spec: LatentSpec) -> tuple[OpenAIUNet, FirstStage, nn.Module | None]:
    """The networks of a model on the meta device, to be given their weights with load_state_dict(…, assign=True)."""

    def make() -> tuple[OpenAIUNet, FirstStage, nn.Module | None]:
        condition = conditioner(spec.conditioner) if spec.conditioner is not None else None
        return OpenAIUNet(spec.unet), FirstStage(spec.stage), condition

    return unset(make)


@functools.lru_cache(maxsize=32)
def expected(spec: LatentSpec) -> Expected:
    """What the networks of a model consist of."""
    return Expected(*(shapes_of(module) for module in networks(spec)))


def read_weights(checkpoint: Checkpoint, config: Config, weights: str = "ema") -> Weights:
    """The weights of the networks that a configuration describes.

    weights: "ema", the moving average where training kept one, or "online", the trained network itself. CheckpointError for
    weights or constants that are another model's, missing, of another shape, not finite, or unknown.
    """
    if weights not in WEIGHTS:
        raise ArgumentError(
            f"--weights: found {weights!r}, expected {' or '.join(WEIGHTS)}.{did_you_mean(weights, WEIGHTS)}"
        )
    path, tensors, wanted = checkpoint.path, checkpoint.tensors, expected(config.spec)
    notes: list[str] = []
    averaged = _is_averaged(checkpoint, config, weights, notes)
    parts: list[dict[str, torch.Tensor]] = []
    known: set[str] = set()
    for prefix, shapes in ((UNET, wanted.unet), (STAGE, wanted.stage), (CONDITIONER, wanted.conditioner)):
        names = {key: _averaged(key) if averaged and prefix == UNET else prefix + key for key in shapes}
        by_name = {name: shapes[key] for key, name in names.items()}
        require({name: tensors[name] for name in by_name if name in tensors}, by_name, path, "", describe(config.spec))
        found = as_float32({name: tensors[name] for name in by_name}, path)
        parts.append({key: found[name] for key, name in names.items()})
        known |= by_name.keys()
    other = UNET if averaged else AVERAGE
    strays = [key for key in tensors if key not in known and not key.startswith((other, *USELESS)) and not _is_constant(key)]
    if strays:
        raise CheckpointError(
            f"{path}: found the unexpected keys {listed(strays)}, expected {describe(config.spec)} and nothing beside it; "
            "give the configuration that this model was trained with"
        )
    _check_schedule(checkpoint, config)
    notes += stored_as({name: tensors[name] for name in known})
    unet, stage, condition = parts
    return Weights(unet, stage, condition, _scale(checkpoint, config), "ema" if averaged else "online", tuple(notes))


def _averaged(key: str) -> str:
    """The name of a parameter in the moving average, which has no dots."""
    return AVERAGE + AVERAGED + key.replace(".", "")


def _is_constant(key: str) -> bool:
    return key in CONSTANTS or key in COUNTERS or key == SCALE


def _is_averaged(checkpoint: Checkpoint, config: Config, weights: str, notes: list[str]) -> bool:
    """Whether the moving average is what is meant."""
    has = any(key.startswith(AVERAGE + AVERAGED) for key in checkpoint.tensors)
    if weights == "online":
        return False
    if not config.use_ema:
        aside = f"; {AVERAGE}* in the file is left aside" if has else ""
        notes.append(f"the model has no moving average (use_ema: false): its weights are the trained ones{aside}")
        return False
    if not has:
        raise CheckpointError(
            f"{checkpoint.path}: found no {AVERAGE}{AVERAGED}*, expected the moving average that {config.origin} speaks of "
            "(use_ema, true unless it says false); build with --weights online if the file was reduced to one set of weights"
        )
    return True


def _scale(checkpoint: Checkpoint, config: Config) -> float:
    """What latents were multiplied with: measured once and kept beside the weights (scale_by_std), or configured."""
    stored = checkpoint.tensors.get(SCALE)
    if stored is None:
        if config.scale_by_std:
            raise CheckpointError(
                f"{checkpoint.path}: found no {SCALE}, expected it beside the weights of a model with scale_by_std; use the "
                "checkpoint as it was written, or set scale_factor and scale_by_std: false in the configuration"
            )
        return config.spec.scale
    value = float(stored) if stored.numel() == 1 and stored.is_floating_point() else float("nan")
    if not (0.0 < value < float("inf")):
        raise CheckpointError(
            f"{checkpoint.path}: found {SCALE} of shape {list(stored.shape)} that is {value:g}, expected one number above "
            "0; use the checkpoint as it was written"
        )
    if not config.scale_by_std and not np.isclose(value, config.spec.scale, rtol=1e-3, atol=0.0):
        raise CheckpointError(
            f"{checkpoint.path}: found the {SCALE} {value:g} in the file and {config.spec.scale:g} from {config.origin}, "
            "expected one answer; give the configuration that this model was trained with"
        )
    return value


def _check_schedule(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse constants that are not those of the configured schedule; a file without any is taken by the configuration."""
    betas, products = checkpoint.tensors.get("betas"), checkpoint.tensors.get("alphas_cumprod")
    differs = None
    if betas is not None:
        read = schedule.read_schedule(betas, "betas", checkpoint.path)
        if not schedule.agree(config.schedule, read) and not schedule.explains(config.schedule, betas):
            differs = f"the betas of {schedule.describe(read)}"
    if differs is None and products is not None:
        exact = config.schedule.schedule().alpha_bar
        rtol = max(AGREES, 2 * torch.finfo(products.dtype).eps) if products.is_floating_point() else 0.0
        found = products.detach().to(torch.float64).numpy()
        if found.shape != exact.shape or not np.allclose(found, exact, rtol=rtol, atol=1e-7):
            last = f" that end at {found[-1]:g}" if found.ndim == 1 and len(found) else ""
            differs = f"alphas_cumprod of shape {list(found.shape)}{last}"
    if differs is not None:
        raise CheckpointError(
            f"{checkpoint.path}: found {differs} in the file and {schedule.describe(config.schedule)} from {config.origin}, "
            "expected one schedule; give the configuration that this model was trained with"
        )
