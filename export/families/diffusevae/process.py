"""DiffuseVAE's forward process, as its checkpoints record it: which of the paper's formulations, and the noise schedule.

Formulation 1 noises x_0 as DDPM does and shows the network the VAE's reconstruction; formulation 2 also centres the noise on
the reconstruction (DiffuseVAE, https://arxiv.org/abs/2201.00308, section 4).
"""

from __future__ import annotations

from engine.bundle.limits import MAX_T
from engine.bundle.training import ScheduleSpec
from engine.errors import ArgumentError, CheckpointError, did_you_mean
from export.families.diffusevae.evidence import Evidence
from export.models.unet import UNetSpec
from export.read.evidence import settle
from export.read.schedule import agree, describe, explains, linear, read_schedule, rounding

FLAG = "--schedule"
TYPES = {"form1": 1, "form2": 2, "uncond": None}


def formulation(evidence: Evidence, unet: UNetSpec, origins: dict[str, str]) -> int | None:
    """1 or 2, or None for an unconditional network. Only formulation 2 registers post_coeff_3."""
    buffers, conditional = evidence.network.buffers, unet.conditional
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
            f"{evidence.network.prefix}… {unet.in_channels} input channels, expected the two to agree; use the "
            "checkpoint as it was written"
        )
    if not conditional:
        if evidence.options.formulation is not None or "post_coeff_3" in buffers:
            raise CheckpointError(
                f"{evidence.path}: found formulation 2's constants or --formulation with an unconditional network, "
                "expected neither; check that this is the right file"
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


def schedule(evidence: Evidence, origins: dict[str, str], notes: list[str]) -> ScheduleSpec:
    """The noise schedule, from the betas or, without them, from what was said of it.

    Where the file disagrees with itself, or its betas were rounded, --schedule decides.
    """
    betas = evidence.network.buffers.get("betas")
    name = f"{evidence.network.prefix.partition('decoder.')[0]}betas"
    claims = [(source, _recipe(source, *triple)) for source, triple in _schedule_claims(evidence) if triple is not None]
    if betas is None:
        found = settle("schedule", claims)
        if found is None:
            raise CheckpointError(
                f"{evidence.path}: found no {name}, expected the noise schedule; name it with --schedule BETA_1 BETA_T T "
                "(the reference: --schedule 0.0001 0.02 1000) or --preset"
            )
        spec, origins["schedule"] = found
        return spec
    rounded = rounding(betas) if betas.is_floating_point() and betas.ndim == 1 and len(betas) else None
    if rounded and (explained := next((claim for claim in claims if explains(claim[1], betas)), None)) is not None:
        read, origins["schedule"] = explained[1], f"{explained[0]}; the weights have it rounded to {rounded}"
    elif rounded and claims and claims[0][0] == FLAG and len(betas) == claims[0][1].T:
        chosen, origins["schedule"] = claims[0][1], FLAG
        notes.append(f"the schedule is {describe(chosen)} from {FLAG}; the file's betas, rounded to {rounded}, are others")
        return chosen
    else:
        read, origins["schedule"] = read_schedule(betas, name, evidence.path), "weights"
        if rounded:
            origins["schedule"] += f", rounded to {rounded}"
            notes.append(
                f"the schedule was read as {describe(read)} from betas rounded to {rounded}; if it was another, name it "
                f"with {FLAG} BETA_1 BETA_T T"
            )
    return _decided(read, claims, origins, notes)


def _schedule_claims(evidence: Evidence) -> list[tuple[str, tuple[float, float, int] | None]]:
    """What was said of it, (beta_1, beta_T, T): the flag, hyper-parameters as the reference names them, a preset."""
    known, metadata = evidence.preset, evidence.metadata
    beta_1, beta_T, steps = (metadata.get(key) for key in ("beta1", "beta2", "n_timesteps"))
    numbers = isinstance(beta_1, (int, float)) and isinstance(beta_T, (int, float)) and type(steps) is int
    return [
        (FLAG, evidence.options.schedule),
        ("metadata", (beta_1, beta_T, steps) if numbers else None),  # type: ignore[list-item]
        (evidence.preset_label, (known.beta_1, known.beta_T, known.T) if known else None),
    ]


def _recipe(source: str, beta_1: float, beta_T: float, steps: int) -> ScheduleSpec:
    if not 0 < beta_1 <= beta_T < 1 or not 2 <= steps <= MAX_T:
        raise ArgumentError(
            f"{source}: found the schedule {beta_1} {beta_T} {steps}, expected 0 < beta_1 <= beta_T < 1 and 2 to "
            f"{MAX_T} steps; correct it"
        )
    return linear(beta_1, beta_T, steps)


def _decided(
    read: ScheduleSpec, claims: list[tuple[str, ScheduleSpec]], origins: dict[str, str], notes: list[str]
) -> ScheduleSpec:
    """The schedule on which all agree, or the flag's where the file contradicts itself."""
    others = [(source, spec) for source, spec in claims if spec != read and not agree(spec, read)]
    if not others:
        return read
    by_flag = next((spec for source, spec in claims if source == FLAG), None)
    by_file = next((spec for source, spec in others if source == "metadata"), None)
    if by_flag is not None and by_file is not None:
        chosen = read if agree(by_flag, read) else by_flag
        origins["schedule"] = FLAG
        notes.append(
            f"the schedule is {describe(chosen)} from {FLAG}; the betas in the file say {describe(read)} and its "
            f"hyper-parameters {describe(by_file)}"
        )
        return chosen
    source, spec = others[0]
    decides = f"name the right one with {FLAG} BETA_1 BETA_T T" if source == "metadata" else "drop or correct one of the two"
    raise ArgumentError(
        f"schedule: found {describe(read)} in the weights but {describe(spec)} from {source}, expected one answer; {decides}"
    )
