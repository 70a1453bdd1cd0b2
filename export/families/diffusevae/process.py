"""DiffuseVAE's forward process, as its checkpoints record it: which of the paper's formulations, and the noise schedule.

Formulation 1 noises x_0 as DDPM does and shows the network the VAE's reconstruction; formulation 2 also centres the noise on
the reconstruction (DiffuseVAE, https://arxiv.org/abs/2201.00308, section 4).
"""

from __future__ import annotations

from engine.bundle.training import ScheduleSpec
from engine.errors import ArgumentError, CheckpointError, did_you_mean
from export.families.diffusevae.evidence import Evidence
from export.read.evidence import settle
from export.read.schedule import agree, describe, linear, read_schedule

TYPES = {"form1": 1, "form2": 2, "uncond": None}


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
            f"{evidence.path}: found a bare network without its schedule's constants, which tell the formulation, expected "
            "to be told; name it with --formulation 1 or --formulation 2"
        )
    value, origins["formulation"] = found
    return value


def schedule(evidence: Evidence, origins: dict[str, str]) -> ScheduleSpec:
    """The noise schedule, from the betas or, without them, from a preset or the flag."""
    known, betas = evidence.preset, evidence.network.buffers.get("betas")
    name = f"{evidence.network.prefix.removesuffix('decoder.')}betas"
    told = settle(
        "schedule (beta_1, beta_T, T)",
        [
            ("--schedule", evidence.options.schedule),
            (evidence.preset_label, (known.beta_1, known.beta_T, known.T) if known else None),
        ],
    )
    if betas is None and told is None:
        raise CheckpointError(
            f"{evidence.path}: found no {name}, expected the noise schedule; name it with --schedule BETA_1 BETA_T T (the "
            "reference: --schedule 0.0001 0.02 1000) or --preset"
        )
    if betas is None:
        assert told is not None
        (beta_1, beta_T, steps), origins["schedule"] = told
        if not 0 < beta_1 <= beta_T < 1 or steps < 2:
            raise ArgumentError(
                f"--schedule: found {beta_1} {beta_T} {steps}, expected 0 < beta_1 <= beta_T < 1 and at least 2 steps; "
                "correct it"
            )
        return linear(beta_1, beta_T, steps)
    read = read_schedule(betas, name, evidence.path)
    origins["schedule"] = "weights"
    if told is not None and not agree(linear(*told[0]), read):
        raise ArgumentError(
            f"schedule: found {describe(read)} in the weights but {describe(linear(*told[0]))} from {told[1]}, expected one "
            "answer; drop or correct one of the two"
        )
    return read
