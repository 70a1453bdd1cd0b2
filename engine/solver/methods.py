"""The solvers by name, the options that each takes, and the refusal of those that it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.argument_checks import Numbers
from engine.errors import ArgumentError, did_you_mean
from engine.solver.ddim import ddim, ddim_clipped
from engine.solver.ddpm import ddpm
from engine.solver.dpmpp_2m import dpmpp_2m, sde_dpmpp_2m
from engine.solver.ipndm import ipndm
from engine.solver.levels import VARIANCES, Columns, Levels
from engine.solver.plms import plms
from engine.solver.prediction import PREDICTIONS
from engine.solver.regulariser import OFF, REGULARISE
from engine.solver.unipc_2 import unipc_2


@dataclass(frozen=True)
class Method:
    """A solver, the options that it takes, and the predictions that it can be derived for."""

    solver: Callable[[Levels], Columns]
    takes: tuple[str, ...] = ()
    predictions: tuple[str, ...] = tuple(PREDICTIONS)


METHODS: dict[str, Method] = {
    "ddim": Method(ddim, takes=("eta", "regulariser")),
    "ddim_clipped": Method(ddim_clipped, takes=("eta", "guide", "regulariser")),
    "ddpm": Method(ddpm, takes=("variance", "guide", "regulariser")),
    "dpmpp_2m": Method(dpmpp_2m),
    "sde_dpmpp_2m": Method(sde_dpmpp_2m),
    "unipc_2": Method(unipc_2),
    # Their history is of eps, which for x0 and v takes the x of that time too.
    "ipndm": Method(ipndm, predictions=("eps",)),
    "plms": Method(plms, predictions=("eps",)),
}


def check_solver(method: str, prediction: str, variance: str, eta: Numbers, guide_scale: float) -> None:
    """ArgumentError for unknown names, and for what a method cannot be derived for."""
    for name, value, choices in (
        ("method", method, METHODS), ("prediction", prediction, PREDICTIONS), ("variance", variance, VARIANCES)
    ):  # fmt: skip
        if value not in choices:
            raise ArgumentError(f"{name} is {value!r}; expected one of {', '.join(choices)}.{did_you_mean(value, choices)}")
    if np.any(eta) and "eta" not in METHODS[method].takes:
        takes = [name for name, other in METHODS.items() if "eta" in other.takes]
        found = next(f"eta[{i}] is {one}" for i, one in enumerate(eta) if one) if isinstance(eta, tuple) else f"eta is {eta}"
        raise ArgumentError(
            f"{found} with method={method!r}; only {' and '.join(takes)} take eta: leave it 0 or use method={takes[0]!r}"
        )
    if guide_scale and "guide" not in METHODS[method].takes:
        takes = [name for name, other in METHODS.items() if "guide" in other.takes]
        raise ArgumentError(
            f"guide_scale is {guide_scale:g} with method={method!r}; only {' and '.join(takes)} take a guide: leave it 0 or "
            f"use method={takes[0]!r}"
        )
    if prediction not in METHODS[method].predictions:
        others = [repr(name) for name, other in METHODS.items() if prediction in other.predictions]
        raise ArgumentError(
            f"method is {method!r}, which is for {', '.join(METHODS[method].predictions)} prediction; this network predicts "
            f"{prediction}: use method={' or '.join(others)}"
        )


def check_regulariser(method: str, regularise: object, regulariser: str | None) -> None:
    """ArgumentError for an unknown mode, a method that takes no regulariser, and where there is none; regulariser: what it
    predicts."""
    if regularise not in REGULARISE:
        near = did_you_mean(str(regularise), REGULARISE)
        raise ArgumentError(f"regularise is {regularise!r}; expected one of {', '.join(REGULARISE)}.{near}")
    if regularise != OFF and "regulariser" not in METHODS[method].takes:
        takes = [name for name, other in METHODS.items() if "regulariser" in other.takes]
        raise ArgumentError(
            f"regularise is {regularise!r} with method={method!r}, whose steps look back at earlier ones; only "
            f"{', '.join(takes)} take a regulariser: leave it {OFF!r} or use method={takes[0]!r}"
        )
    if regularise != OFF and regulariser is None:
        raise ArgumentError(f"regularise is {regularise!r}, but there is no regulariser; expected {OFF!r}")
    if regulariser is not None and regulariser not in PREDICTIONS:
        raise ArgumentError(f"regulariser is {regulariser!r}; expected one of {', '.join(PREDICTIONS)}")
