"""The diffusion process that a network was trained for, as far as any family has it: prediction, variance, defaults."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from engine.bundle.training import PLAIN
from engine.errors import ArgumentError, CheckpointError, did_you_mean
from engine.solver.levels import FIXED_VARIANCES
from engine.solver.prediction import PREDICTIONS
from export.read.evidence import Claims, Facts, first, settle

DEFAULTS: dict[str, Any] = {"steps": 10, "timesteps": None, "spacing": "uniform", **PLAIN}


def prediction(claims: Claims[str], origins: dict[str, str]) -> str:
    """What the network predicts, on which all sources must agree: another answer gives other images."""
    found = settle("prediction", claims) or ("eps", "assumed; --prediction")
    value, origins["prediction"] = found
    return _known("prediction", value, origins["prediction"], PREDICTIONS)


def variance(claims: Claims[str], origins: dict[str, str]) -> str:
    """The first source that speaks: it matters for method ddpm only, and can be chosen again when sampling."""
    value, origins["variance"] = first([*claims, ("assumed; --variance", "fixedlarge")])
    return _known("variance", value, origins["variance"], FIXED_VARIANCES)


def _known(name: str, value: str, origin: str, known: Collection[str]) -> str:
    if value not in known:
        raise ArgumentError(
            f"{name}: found {value!r} from {origin}, expected {' or '.join(known)}.{did_you_mean(value, known)}"
        )
    return value


def defaults(facts: Facts, T: int, origins: dict[str, str]) -> dict[str, Any]:
    """The sampling settings that the bundle records: the file's own over the common ones."""
    given = facts.plain("defaults", dict, "a dict of sampling settings") or {}
    origins["defaults"] = "metadata" if given else "common"
    unknown = [key for key in given if key not in DEFAULTS]
    if unknown:
        raise CheckpointError(
            f"{facts.path}: found the default {unknown[0]!r} among the hyper-parameters, expected keys of "
            f"{', '.join(DEFAULTS)}.{did_you_mean(unknown[0], DEFAULTS)}"
        )
    common = dict(DEFAULTS)
    if T % 10:  # uniform spacing keeps every T/10th step, which such a T does not have
        common |= {"spacing": "linspace", "steps": min(10, T)}
    if isinstance(given.get("timesteps"), (list, tuple)):
        common |= {"spacing": None, "steps": len(given["timesteps"])}
    return common | given
