"""Which diffusion process was the network trained for: formulation, noise schedule, variance, settings to sample with?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from engine.errors import ArgumentError, CheckpointError, did_you_mean
from engine.solver.schedule import Schedule
from engine.solver.table import VARIANCES
from export.read.evidence import Evidence, settle

TYPES = {"form1": 1, "form2": 2, "uncond": None}
LINEAR_TOLERANCE = 1e-7
DEFAULTS: dict[str, Any] = {
    "steps": 10, "method": "ddim", "spacing": "uniform", "t_start": None, "eta": 0.0, "temperature": 1.0, "guidance": 0.0,
}  # fmt: skip


def formulation(evidence: Evidence, conditional: bool, origins: dict[str, str]) -> int | None:
    """1 or 2, or None for an unconditional network. Only formulation 2 registers post_coeff_3."""
    buffers = evidence.network.buffers
    kind = evidence.plain("type", str, "one of " + ", ".join(TYPES))
    if kind is not None and kind not in TYPES:
        raise CheckpointError(
            f"{evidence.path}: found type {kind!r} among the hyper-parameters, expected one of {', '.join(TYPES)}."
            f"{did_you_mean(kind, TYPES)}"
        )
    told = None if kind is None else TYPES[kind]
    if kind is not None and (told is not None) != conditional:
        raise CheckpointError(
            f"{evidence.path}: found type {kind!r} among the hyper-parameters of a network with "
            f"{evidence.network.prefix}… {'6' if conditional else '3'} input channels, expected the two to agree; use the "
            "checkpoint as it was written"
        )
    if not conditional:
        if evidence.options.formulation is not None or "post_coeff_3" in buffers:
            raise CheckpointError(
                f"{evidence.path}: found formulation 2's constants or --formulation with an unconditional network (3 input "
                "channels), expected neither; check that this is the right file"
            )
        origins["formulation"] = "weights"
        return None
    read = (2 if "post_coeff_3" in buffers else 1) if "betas" in buffers else None
    found = settle("formulation", [("weights", read), ("--formulation", evidence.options.formulation), ("metadata", told)])
    if found is None:
        raise CheckpointError(
            f"{evidence.path}: found a bare network without its schedule's constants, which tell the formulation, "
            "expected to "
            "be told; name it with --formulation 1 or --formulation 2"
        )
    formulation, origins["formulation"] = found
    return formulation


def schedule(evidence: Evidence, origins: dict[str, str]) -> tuple[float, float, int]:
    """(beta_1, beta_T, T) of the linear recipe, from the betas or, without them, from a preset or the flag."""
    known, betas = evidence.preset, evidence.network.buffers.get("betas")
    told = settle(
        "schedule (beta_1, beta_T, T)",
        [
            ("--schedule", evidence.options.schedule),
            (evidence.preset_label, (known.beta_1, known.beta_T, known.T) if known else None),
        ],
    )
    if betas is None and told is None:
        raise CheckpointError(
            f"{evidence.path}: found no {evidence.network.prefix.removesuffix('decoder.')}betas, expected the noise "
            "schedule; "
            "name it with --schedule BETA_1 BETA_T T (the reference: --schedule 0.0001 0.02 1000) or --preset"
        )
    if betas is None:
        assert told is not None
        (beta_1, beta_T, steps), origins["schedule"] = told
        if not 0 < beta_1 <= beta_T < 1 or steps < 2:
            raise ArgumentError(
                f"--schedule: found {beta_1} {beta_T} {steps}, expected 0 < beta_1 <= beta_T < 1 and at least 2 steps; "
                "correct it"
            )
        return beta_1, beta_T, steps
    read = _linear(evidence, betas)
    origins["schedule"] = "weights"
    if told is not None and told[0] != read:
        raise ArgumentError(
            f"schedule (beta_1, beta_T, T): found {read} in the weights but {told[0]} from {told[1]}, expected one answer; "
            "drop or correct one of the two"
        )
    return read


def _linear(evidence: Evidence, betas: torch.Tensor) -> tuple[float, float, int]:
    """Recognise the reference's recipe, linspace in float32, and recover the numbers it was given."""
    name = f"{evidence.network.prefix.removesuffix('decoder.')}betas"
    values = betas.detach().to(torch.float64).flatten()
    if betas.ndim != 1 or len(values) < 2 or not betas.is_floating_point() or not bool(((values > 0) & (values < 1)).all()):
        raise CheckpointError(
            f"{evidence.path}: found {name} of shape {list(betas.shape)} and dtype {betas.dtype}, expected at least two "
            "betas "
            "between 0 and 1; use the checkpoint as it was written"
        )
    ends = [float(np.format_float_positional(np.float32(values[i].item()), unique=True)) for i in (0, -1)]
    recipe = torch.from_numpy(Schedule(ends[0], ends[1], len(values)).betas.copy())  # what the engine will use
    worst = float(((values - recipe).abs() / recipe).max())
    if worst > LINEAR_TOLERANCE:
        raise CheckpointError(
            f"{evidence.path}: found {name} from {ends[0]:g} to {ends[1]:g} in {len(values)} steps that leave a straight "
            "line "
            f"by up to {worst:.2g} (relative, dtype {betas.dtype}), expected the reference's linear schedule in float32 or "
            "float64; other schedules are not supported"
        )
    return ends[0], ends[1], len(values)


def variance(evidence: Evidence, origins: dict[str, str]) -> str:
    """The first source that speaks: it matters for method ddpm only, and can be chosen again when sampling."""
    known = evidence.preset
    sources = (
        ("flag", evidence.options.variance),
        ("metadata", evidence.plain("variance", str, " or ".join(VARIANCES))),
        (evidence.preset_label, known.variance if known else None),
        ("assumed; --variance", "fixedlarge"),
    )
    origins["variance"], variance = next((source, value) for source, value in sources if value is not None)
    if variance not in VARIANCES:
        raise ArgumentError(
            f"variance: found {variance!r} from {origins['variance']}, expected {' or '.join(VARIANCES)}."
            f"{did_you_mean(variance, VARIANCES)}"
        )
    return variance


def defaults(evidence: Evidence, steps: int, origins: dict[str, str]) -> dict[str, Any]:
    """The sampling settings that the bundle records: the file's own over the common ones."""
    given = evidence.plain("defaults", dict, "a dict of sampling settings") or {}
    origins["defaults"] = "metadata" if given else "common"
    unknown = [key for key in given if key not in DEFAULTS]
    if unknown:
        raise CheckpointError(
            f"{evidence.path}: found the default {unknown[0]!r} among the hyper-parameters, expected keys of "
            f"{', '.join(DEFAULTS)}.{did_you_mean(unknown[0], DEFAULTS)}"
        )
    common = dict(DEFAULTS)
    if steps % 10:  # uniform spacing keeps every T/10th step, which such a T does not have
        common |= {"spacing": "linspace", "steps": min(10, steps)}
    return common | given
