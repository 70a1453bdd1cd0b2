"""Programs of the native CPU engine: lowered from the torch modules of a bundle's graphs, measured, then handed over.

A graph is lowered by the type of its module (LOWERINGS), in the precision that the manifest gives it. int8 is calibrated on
the model's own sampling chains. A graph that the engine has no operations for gets an entry that names the runtimes which
run it instead; only the network in the loop must be the engine's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import engine
from engine.backends.native.backend import NAME, Native
from engine.backends.native.program import VERSION
from engine.bundle.engines import RUNNERS
from engine.errors import BackendError, ExportError
from export.context import Watch
from export.engines import BuildContext, BuiltEngine
from export.families.base import Model
from export.graphs.roles import Role
from export.guides import Guide
from export.models.graphs import ConditionedDenoiser, DecoderGraph, Denoiser, EncoderGraph, TimestepTable
from export.models.latent.conditioners import ClassEmbedder, Rescaler, TokenEncoder
from export.models.latent.graphs import Codebook, FirstStageDecoder, FirstStageEncoder, KeysValues
from export.models.ncsnpp import GeneratorStep
from export.models.openai.graphs import LabelEmbedding, MappedDenoiser, OpenAIDenoiser
from export.native import ddgan, guide, latent, spade, tokens
from export.native.int8 import Choice, Unseen, allowed_error, choose_layers, parse_budget
from export.native.measure import BOUNDS, GUIDE_BOUND, GUIDE_SIZES, INT8_BOUND, TooFarOff, error_on_states, measure_program
from export.native.program import Assembled
from export.native.scales import evaluate
from export.native.trajectory import States, trajectory_states
from export.native.unet import lower_denoiser, lower_table
from export.native.vae import lower_decoder, lower_encoder

PRECISIONS = ("bf16", "int8")
UNSEEN, UNSEEN_SHARE = 6, 0.7  # random inputs that the choice of layers is held to, and the part of the check's bound there
LOWERINGS: dict[type[nn.Module], Callable[..., Assembled]] = {
    EncoderGraph: lower_encoder,
    DecoderGraph: lower_decoder,
    TimestepTable: lower_table,
    Denoiser: lower_denoiser,
    ConditionedDenoiser: lower_denoiser,
    OpenAIDenoiser: latent.lower_denoiser,
    MappedDenoiser: spade.lower_mapped,
    GeneratorStep: ddgan.lower_generator,
    FirstStageEncoder: latent.lower_encoder,
    FirstStageDecoder: latent.lower_decoder,
    ClassEmbedder: tokens.lower_class,
    LabelEmbedding: tokens.lower_label,
    Rescaler: tokens.lower_rescaler,
    TokenEncoder: tokens.lower_encoder,
    KeysValues: tokens.lower_keys_values,
    Codebook: tokens.lower_codebook,
    Guide: guide.lower_guide,
}
UNFIT: dict[type[nn.Module], Callable[[Role], str | None]] = {  # what of such a module cannot be lowered
    OpenAIDenoiser: latent.denoiser_unfit,
    MappedDenoiser: spade.mapped_unfit,
    GeneratorStep: ddgan.generator_unfit,
    FirstStageEncoder: latent.encoder_unfit,
    FirstStageDecoder: latent.decoder_unfit,
    Rescaler: tokens.rescaler_unfit,
    Codebook: tokens.codebook_unfit,
    Guide: guide.guide_unfit,
}


def check(options: Mapping[str, Any]) -> None:
    """BackendError where programs cannot be run, and so not be checked; ArgumentError for a budget that is none."""
    there, reason = Native.available()
    if not there:
        raise BackendError(
            f"backend native: found that it is {reason}; expected a processor that runs it, since every program is "
            "compared with torch before it is written: build on another machine, or leave native out of --backends"
        )
    parse_budget(options.get("int8_budget") or "free")


def build(context: BuildContext, precision: str, options: Mapping[str, Any]) -> list[BuiltEngine]:
    """The programs that a run in this precision needs."""
    check(options)
    budget = parse_budget(options.get("int8_budget") or "free")
    model = context.model
    engines = []
    for role in model.roles.values():
        found = role.computes_in(precision)
        why = unfit_role(role)
        if why is not None:
            engines.append(_elsewhere(context, role, found, why))
            continue
        if found == "int8":
            engines.append(_int8(context, role, budget))
            continue
        if isinstance(role.module, Guide):
            engines.append(_guide(context, role, found))
            continue
        bound = model.step_bound if role.name in model.loop_graphs else BOUNDS[found]
        engines.append(_engine(context, role, found, lower(role), bound))
    return engines


def _guide(context: BuildContext, role: Role, precision: str) -> BuiltEngine:
    """A guide's program; or, where bf16 costs the gradient of this classifier too much, the entry of another runtime's."""
    try:
        return _engine(context, role, precision, lower(role), GUIDE_BOUND)
    except TooFarOff as error:
        return _elsewhere(context, role, precision, str(error))


def unfit(model: Model) -> str | None:
    """Why the network in the loop cannot be run here, or None: other graphs may be run by another runtime."""
    return unfit_role(model.step)


def unfit_role(role: Role) -> str | None:
    """What of a graph the native engine has no operations for, or None."""
    kind = type(role.module)
    if kind not in LOWERINGS:
        return (
            f"graph {role.name}: found a {kind.__name__}, expected a network that the native engine has operations for: "
            "denoisers, generators, first stages, VAEs, conditioners, codebooks, guides and tables of timesteps"
        )
    found = UNFIT[kind](role) if kind in UNFIT else None
    return None if found is None else f"graph {role.name}: found {found}: the native engine has no operations for it"


def lower(role: Role) -> Assembled:
    """The program of a graph; ExportError for a module that the native engine has no operations for."""
    why = unfit_role(role)
    if why is not None:
        raise ExportError(f"{why}; leave native out of --backends")
    return LOWERINGS[type(role.module)](role)


def _elsewhere(context: BuildContext, role: Role, precision: str, why: str) -> BuiltEngine:
    """The entry of a graph that other runtimes run: those that it was checked in."""
    graph = context.graph(role.name)
    runners = [name for name in RUNNERS if name in graph.parity]
    context.watch.note(f"{role.name} is run by {runners[0]}: {why}")
    return BuiltEngine(_entry(role, precision, graph.sha256, {"why": why}) | {"runs_on": runners}, {})


def _entry(role: Role, precision: str, sha256: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the entries of all graphs have."""
    return {
        "backend": NAME,
        "precision": precision,
        "graph": role.name,
        "source_sha256": sha256,
        "made_with": {
            "diffusevae-engine": engine.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "targets": [],
        "options": {"program_version": VERSION},
        "record": dict(record),
    }


def _engine(
    context: BuildContext,
    role: Role,
    precision: str,
    assembled: Assembled,
    bound: float,
    extra: Mapping[str, Any] | None = None,
) -> BuiltEngine:
    """Measure a program and make its entry; `extra` belongs to its record."""
    started = time.perf_counter()
    sizes = GUIDE_SIZES if isinstance(role.module, Guide) else {}
    record = measure_program(role, assembled, precision, context.model.example, bound, sizes)
    record["check_seconds"] = round(time.perf_counter() - started, 2)
    stem = f"native.{precision}.{role.name}"
    files = {"program": f"{stem}.json", "weights": f"{stem}.safetensors"}
    entry = _entry(role, precision, context.graph(role.name).sha256, record | dict(extra or {}))
    entry["files"] = {label: {"file": file} for label, file in files.items()}
    return BuiltEngine(entry, {files["program"]: assembled.program, files["weights"]: assembled.weights})


@dataclass(frozen=True)
class _Calibrated:
    """What calibration found."""

    assembled: Assembled
    choice: Choice
    record: dict[str, Any]


def _int8(context: BuildContext, role: Role, budget: str | float) -> BuiltEngine:
    """Calibrate, choose layers against the budget, and build."""
    found = _calibrate(context, role, budget)
    bound = _bound(found.choice.allowed, context.model.step_bound)
    return _engine(context, role, "int8", found.assembled, bound, {"calibration": found.record})


def _calibrate(context: BuildContext, role: Role, budget: str | float) -> _Calibrated:
    started, watch = time.perf_counter(), context.watch
    states = trajectory_states(context.model)
    exact = evaluate(role, states)
    bf16 = error_on_states(role, lower(role), "bf16", states, exact)
    unseen = _unseen(context.model, _bound(allowed_error(budget, bf16), context.model.step_bound))
    choice = choose_layers(role, states, exact, budget, bf16, _reporter(watch), unseen)
    assembled = LOWERINGS[type(role.module)](role, "int8", choice.scales)
    measured = error_on_states(role, assembled, "int8", states, exact)
    record = choice.record() | {
        "int8_error": float(f"{measured:.4g}"),
        "seconds": round(time.perf_counter() - started, 1),
    }
    for line in choice.lines():
        watch.note(line)
    watch.note(f"int8 on the calibration states: relative error {measured:.4f}, bf16 {bf16:.4f}")
    return _Calibrated(assembled, choice, record)


def _unseen(model: Model, bound: float) -> Unseen:
    """Random inputs such as the program will be checked on; rounding to bf16 takes its part of the bound there."""
    drawn = [model.example(model.step, 1, 1, seed) for seed in range(UNSEEN)]
    states = States({name: torch.cat([inputs[name] for inputs in drawn]) for name in drawn[0]}, (0,) * UNSEEN)
    return Unseen(states, evaluate(model.step, states), UNSEEN_SHARE * bound)


def _bound(allowed: float, bf16: float) -> float:
    """What an int8 network is held to on random inputs, which it was not calibrated on: twice what it was allowed, or twice
    what bf16 may cost there, since a network whose states are large is nearer to float32 on them than on random inputs."""
    return float(min(INT8_BOUND, 2 * max(allowed, bf16)))


def _reporter(watch: Watch) -> Any:
    """Tells the watch of each layer as it is measured."""

    def report(names: list[str]) -> Any:
        for done, name in enumerate(names):
            watch.progress("int8 calibration", done, len(names))
            yield name
        watch.progress("int8 calibration", len(names), len(names))

    return report
