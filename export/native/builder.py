"""How are the programs of the native CPU engine built? Lowered from the torch modules, measured, then handed over.

bf16: every role; the timestep table always in float32. int8: the denoiser alone, calibrated on its own sampling chains;
what else a run needs is the same as for bf16.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import engine
from engine.backends.native import backend
from engine.backends.native.program import VERSION
from engine.errors import BackendError
from export.context import Watch
from export.engines import BuildContext, BuiltEngine
from export.graphs.roles import Role, TimestepTable
from export.native.int8 import Choice, choose_layers, parse_budget
from export.native.measure import BOUNDS, INT8_BOUND, error_on_states, measure_program
from export.native.program import Assembled
from export.native.scales import evaluate
from export.native.trajectory import trajectory_states
from export.native.unet import lower_denoiser, lower_table
from export.native.vae import lower_decoder, lower_encoder

PRECISIONS = ("bf16", "int8")


def build(context: BuildContext, precision: str, options: Mapping[str, Any]) -> list[BuiltEngine]:
    """The programs that a run in this precision needs; BackendError where they cannot be run, and so not be checked."""
    there, reason = backend.available()
    if not there:
        raise BackendError(
            f"backend native: found that it is {reason}; expected a processor that runs it, since every program is "
            "compared with torch before it is written: build on another machine, or leave native out of --backends"
        )
    budget = parse_budget(options.get("int8_budget") or "free")
    table = context.graph("timestep_table").role.module
    assert isinstance(table, TimestepTable)
    building = _Building(context, table)
    engines = [building.engine("timestep_table", "f32", lower_table(table), BOUNDS["timestep_table"])]
    if context.vae is not None:
        engines.append(building.engine("vae_encoder", "bf16", lower_encoder(context.vae), BOUNDS["vae_encoder"]))
        engines.append(building.engine("vae_decoder", "bf16", lower_decoder(context.vae), BOUNDS["vae_decoder"]))
    plain = lower_denoiser(context.unet)
    if precision == "bf16":
        return [*engines, building.engine("denoiser", "bf16", plain, BOUNDS["denoiser"])]
    return [*engines, building.int8_denoiser(plain, budget)]


@dataclass
class _Building:
    """What every engine of one build has in common."""

    context: BuildContext
    table: TimestepTable

    def engine(
        self, name: str, precision: str, assembled: Assembled, bound: float, extra: Mapping[str, Any] | None = None
    ) -> BuiltEngine:
        """Measure a program and make its entry; `extra` belongs to its record."""
        started = time.perf_counter()
        record = measure_program(self._role(name), assembled, precision, self.table, bound)
        record["check_seconds"] = round(time.perf_counter() - started, 2)
        files = {
            label: f"native.{precision}.{name}.{ending}"
            for label, ending in (("program", "json"), ("weights", "safetensors"))
        }
        entry = {
            "backend": backend.NAME,
            "precision": precision,
            "role": name,
            "files": {label: {"file": file} for label, file in files.items()},
            "source_sha256": self.context.graph(name).sha256,
            "made_with": {
                "diffusevae-engine": engine.__version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
            },
            "targets": [],
            "options": {"program_version": VERSION},
            "record": record | dict(extra or {}),
        }
        return BuiltEngine(entry, {files["program"]: assembled.program, files["weights"]: assembled.weights})

    def int8_denoiser(self, plain: Assembled, budget: str | float) -> BuiltEngine:
        """Calibrate, choose layers against the budget, and build."""
        started, context = time.perf_counter(), self.context
        role = self._role("denoiser")
        states = trajectory_states(context.architecture, context.unet, context.vae, self.table)
        exact = evaluate(context.unet, states)
        bf16 = error_on_states(role, plain, "bf16", states, exact)
        choice = choose_layers(context.unet, states, exact, budget, bf16, _reporter(context.watch))
        assembled = lower_denoiser(context.unet, "int8", choice.scales)
        measured = error_on_states(role, assembled, "int8", states, exact)
        record = choice.record() | {
            "int8_error": float(f"{measured:.4g}"),
            "seconds": round(time.perf_counter() - started, 1),
        }
        for line in choice.lines():
            context.watch.note(line)
        context.watch.note(f"int8 on the calibration states: relative error {measured:.4f}, bf16 {bf16:.4f}")
        return self.engine("denoiser", "int8", assembled, _bound(choice), {"calibration": record})

    def _role(self, name: str) -> Role:
        return self.context.graph(name).role


def _bound(choice: Choice) -> float:
    """What an int8 denoiser is held to on random inputs, which it was not calibrated on: twice what it was allowed."""
    return float(min(INT8_BOUND, 2 * choice.allowed))


def _reporter(watch: Watch) -> Any:
    """Tells the watch of each layer as it is measured."""

    def report(names: list[str]) -> Any:
        for done, name in enumerate(names):
            watch.progress("int8 calibration", done, len(names))
            yield name
        watch.progress("int8 calibration", len(names), len(names))

    return report
