"""The classifiers of guided diffusion's golden vectors (tests/golden_adm) from their recipe, and the chains they guide."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.models.openai.classifier import Classifier, ClassifierSpec
from export.models.openai.spec import OpenAIUNetSpec
from tests import adm_models as models

NAMES = ("guided_adaptive", "guided_attention", "guided_entropy")
CHAINS = [(folder, chain) for folder in NAMES for chain in models.config(folder)["chains"]]


def state_dict(folder: str, scale: dict[str, float] | None = None) -> dict[str, torch.Tensor]:
    """A classifier's file; scale: factors of weights by their endings, in place of its own."""
    return models.seeded(models.config(folder), scale)


def spec(folder: str) -> ClassifierSpec:
    """The architecture of a classifier."""
    arch = models.config(folder)["arch"]
    wide = arch["num_head_channels"]
    unet = OpenAIUNetSpec(
        in_channels=arch["in_channels"], out_channels=arch["out_channels"], model_channels=arch["model_channels"],
        channel_mult=tuple(arch["channel_mult"]), num_res_blocks=arch["num_res_blocks"],
        attention_factors=tuple(arch["attention_resolutions"]), num_heads=None if wide > 0 else arch["num_heads"],
        num_head_channels=wide if wide > 0 else None, scale_shift=arch["use_scale_shift_norm"],
        resample_blocks=arch["resblock_updown"],
    )  # fmt: skip
    return ClassifierSpec(unet, arch["pool"], (arch["image_size"],) * 2)


def network(folder: str, scale: dict[str, float] | None = None) -> Classifier:
    """A classifier with its weights."""
    found = Classifier(spec(folder))
    found.load_state_dict(state_dict(folder, scale))
    return found.eval()


def said(folder: str) -> dict[str, Any]:
    """What must be said of a classifier beside its weights, as `options` of a build."""
    of = spec(folder).unet
    return {"guide_heads": of.num_heads} if of.num_heads is not None else {"guide_head_channels": of.num_head_channels}


def case(folder: str, chain: str) -> tuple[str, str, dict[str, float] | None]:
    """The model of a chain, its classifier, and the scale of that one's weights."""
    cfg = models.config(folder)
    return cfg["model"], cfg["classifier"], cfg.get("scale", {}).get(cfg["chains"][chain].get("classifier"))


EXPERTS = "guided_experts"
EXPERT_CHAINS = tuple(models.config(EXPERTS)["chains"])
ALL_CHAINS = [*CHAINS, *((EXPERTS, chain) for chain in EXPERT_CHAINS)]


def expert_base(kind: str = "experts") -> dict[str, torch.Tensor]:
    """The classifier off the shelf that experts share: a ResNet ("experts") or a ViT ("vit_expert")."""
    return models.seeded(models.config(EXPERTS)[kind]["base"])


def adapters(kind: str = "experts") -> list[dict[str, torch.Tensor]]:
    """What the reference saves of each expert."""
    return [models.seeded(entry) for entry in models.config(EXPERTS)[kind]["adapters"]]


def options(folder: str, chain: str) -> dict[str, Any]:
    """The options of `sample` that a chain stands for, with its start, noise and label."""
    of = models.config(folder)["chains"][chain]
    model = models.config(folder).get("model", folder)
    mode = {"guide_mode": "entropy"} if of.get("entropy_scaling") else {}
    given = {"x_T": models.expected(model)["x_T"], "noise": noise(folder, chain), "label": models.expected(model)["y"]}
    return {**given, **models.setting(folder, chain), "guide_scale": of["scale"], **mode}


def noise(folder: str, chain: str) -> np.ndarray:
    """The noise of a chain's steps."""
    steps = len(models.expected(folder)[f"{chain}_timesteps"])
    drawn = models.expected(models.config(folder).get("model", folder))["noise"]
    return drawn[:steps]


def bundle_of(folder: str, chain: str) -> Hashable:
    """The same for chains that share a bundle."""
    if folder == EXPERTS:
        return folder
    return (*case(folder, chain)[:2], models.config(folder)["chains"][chain].get("classifier"))


def build_guided(folder: str, chain: str, into: Path, **request: Any) -> Path:
    """Write model and classifiers of a chain into a folder, and build their bundle there."""
    if folder == EXPERTS:
        return build_adapted("experts", into, **request)
    model, classifier, scale = case(folder, chain)
    file = into / f"{classifier}.pt"
    torch.save(state_dict(classifier, scale), file)
    return models.build_adm(model, into, options={**said(classifier), "guide": (file,)}, **request)


def build_adapted(kind: str, into: Path, **request: Any) -> Path:
    """Write the model of the experts, a base and its adapters into a folder, and build their bundle there."""
    base, files = into / f"{kind}.pth", tuple(into / f"{kind}_{i}.pt" for i in range(len(adapters(kind))))
    torch.save(expert_base(kind), base)
    for file, adapter in zip(files, adapters(kind), strict=True):
        torch.save(adapter, file)
    heads = models.config(EXPERTS)[kind]["arch"].get("heads")
    said = {"guide": (base,), "guide_adapter": files} | ({} if heads is None else {"guide_heads": heads})
    return models.build_adm(EXPERTS, into, options=said, **request)
