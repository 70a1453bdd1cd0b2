"""The classifiers that the golden guides belong to: tests/golden_adm, rebuilt from their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export.models.openai.classifier import Classifier, ClassifierSpec
from export.models.openai.spec import OpenAIUNetSpec
from tests import golden_files
from tests.golden_models import weight

GOLDEN = Path(__file__).parent / "golden_adm"


def golden_classifier(folder: str) -> tuple[Classifier, dict[str, Any], dict[str, np.ndarray]]:
    """A classifier of the reference, its config.json, and what the reference computed."""
    cfg = golden_files.config(GOLDEN / folder)
    arch, wide = cfg["arch"], cfg["arch"]["num_head_channels"]
    unet = OpenAIUNetSpec(
        in_channels=arch["in_channels"], out_channels=arch["out_channels"], model_channels=arch["model_channels"],
        channel_mult=tuple(arch["channel_mult"]), num_res_blocks=arch["num_res_blocks"],
        attention_factors=tuple(arch["attention_resolutions"]), num_heads=None if wide > 0 else arch["num_heads"],
        num_head_channels=wide if wide > 0 else None, scale_shift=arch["use_scale_shift_norm"],
        resample_blocks=arch["resblock_updown"],
    )  # fmt: skip
    network = Classifier(ClassifierSpec(unet, arch["pool"], (arch["image_size"],) * 2))
    state = {}
    for key, shape in cfg["parameters"].items():
        factors = [factor for ending, factor in cfg["scale"].items() if key.endswith(ending)]
        state[key] = weight(cfg["seed"], key, shape) * (factors[0] if factors else 1.0)
    network.load_state_dict(state)
    return network.eval(), cfg, golden_files.expected(GOLDEN / folder)
