"""The choice of layers that run in int8: those whose measured error fits a budget, least error for most time first.

Every eligible layer alone is put in int8 (simulated exactly: the integer sums are exact on every processor) and the error of
eps is measured against float32 on the calibration states. Errors of different layers are nearly independent, so squares
add: layers are taken in the order of squared error for time saved until bf16's own error and theirs fill the budget. The
sum is then measured on all states, not believed, and where it is too much the budget is cut by as much and filled again.

Every program is checked on random inputs, too, which nothing was calibrated on: a range that only holds on the chains, as
that of what a GEGLU makes may, is cut hard there. Layers that would fail this check are given back, the worst first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine.errors import ArgumentError, ExportError, did_you_mean
from export.graphs.roles import Role
from export.native.operands import Product, eligible
from export.native.scales import Scale, choose_scales, evaluate, in_int8, watched
from export.native.trajectory import States

# "free": the step's error stays within this multiple of bf16's own, which is what bf16 costs in general-purpose runtimes
# (reference CIFAR-10 network, random weights: 0.0098 here, 0.012 in OpenVINO) and lies below what images show.
FREE = 1.25
MEASURED_ON = 6  # states on which each layer alone is measured
# What a product costs in bf16 on two cores with AMX, measured: operations a second, and weight bytes a second where
# the map is small; int8 halves either.
OPERATIONS, BYTES = 3.2e12, 30e9


@dataclass(frozen=True)
class Layer:
    """One eligible layer: its scale, the relative error of eps with it alone in int8, and the seconds that int8 saves."""

    name: str
    scale: Scale
    error: float
    saves: float
    chosen: bool = False


@dataclass(frozen=True)
class Unseen:
    """Inputs that no scale was calibrated on, the exact answers, and how far off int8 may be on them."""

    states: States
    exact: torch.Tensor
    bound: float


@dataclass(frozen=True)
class Choice:
    """The layers of a network with those chosen, and what was measured; errors are relative, in the L2 norm."""

    layers: tuple[Layer, ...]
    budget: str
    allowed: float
    bf16: float
    simulated: float
    timesteps: tuple[int, ...]

    @property
    def scales(self) -> dict[str, Scale]:
        """The chosen layers' scales."""
        return {layer.name: layer.scale for layer in self.layers if layer.chosen}

    def record(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        return {
            "budget": self.budget,
            "allowed_error": None if math.isinf(self.allowed) else _short(self.allowed),
            "bf16_error": _short(self.bf16),
            "simulated_int8_error": _short(self.simulated),
            "timesteps": list(self.timesteps),
            "layers": [
                {
                    "name": layer.name,
                    "scale": layer.scale.scale,
                    "zero": layer.scale.zero,
                    "range": layer.scale.rule,
                    "error": _short(layer.error),
                    "int8": layer.chosen,
                }
                for layer in self.layers
            ],
        }

    def lines(self) -> list[str]:
        """The same for people: a line a layer, then the sum."""
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"{layer.name:<{width}}  error {layer.error:.5f}  {'int8' if layer.chosen else 'bf16'}  ({layer.scale.rule})"
            for layer in self.layers
        ]
        chosen = sum(layer.chosen for layer in self.layers)
        bound = "no bound" if math.isinf(self.allowed) else f"at most {self.allowed:.4f}"
        total = f"{chosen} of {len(self.layers)} layers in int8, error of their sum {self.simulated:.4f}"
        return [*lines, f"{total}, of bf16 {self.bf16:.4f}; budget {self.budget}: together {bound}"]


def parse_budget(text: object) -> str | float:
    """--int8-budget: "free", "all", or the largest relative error of a step."""
    words = ("free", "all")
    if text in words:
        return str(text)
    try:
        value = float(str(text))
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise ArgumentError(
            f"--int8-budget: found {text!r}, expected 'free' (no more error than bf16 costs elsewhere), 'all' (every "
            f"eligible layer) or a relative error of one step between 0 and 1, such as 0.03.{did_you_mean(str(text), words)}"
        )
    return value


def allowed_error(budget: str | float, bf16: float) -> float:
    """The largest relative error of one step, rounding to bf16 included."""
    if isinstance(budget, float):
        return budget
    return math.inf if budget == "all" else FREE * bf16


def choose_layers(
    role: Role, states: States, exact: torch.Tensor, budget: str | float, bf16: float, progress: Any = iter,
    unseen: Unseen | None = None,
) -> Choice:  # fmt: skip
    """Measure every eligible layer and choose. exact: the answers to the states; bf16: the error of bf16 on them.

    unseen: what the choice is held to besides, unless all layers were asked for.
    progress: wraps the iteration over layers, as tqdm does.
    """
    _check_finite(exact)
    allowed = allowed_error(budget, bf16)
    scales = choose_scales(role, states)
    few = slice(None, None, max(1, len(states) // MEASURED_ON))
    saves = _seconds_saved(role, states)
    layers = [
        Layer(name, scales[name], int8_error(role, states.part(few), {name: scales[name]}, exact[few]), saves[name])
        for name in progress(list(scales))
    ]
    chosen, simulated = _choose(role, states, exact, layers, max(0.0, allowed**2 - bf16**2))
    kept = chosen if unseen is None or budget == "all" else _kept(role, layers, chosen, unseen)
    if kept != chosen:
        chosen = kept
        simulated = int8_error(role, states, {layer.name: layer.scale for layer in layers if layer.name in kept}, exact)
    return Choice(
        tuple(replace(layer, chosen=layer.name in chosen) for layer in layers),
        budget if isinstance(budget, str) else f"{budget:g}",
        allowed,
        bf16,
        simulated,
        states.timesteps,
    )


def _choose(
    role: Role, states: States, exact: torch.Tensor, layers: Sequence[Layer], room: float
) -> tuple[list[str], float]:
    """The layers whose squared error together, measured on all states, fits into `room`; and that error, not squared."""
    excess = 1.0
    while True:
        chosen = _fill(layers, room / excess)
        simulated = int8_error(role, states, {layer.name: layer.scale for layer in layers if layer.name in chosen}, exact)
        if not chosen or simulated**2 <= room:
            return chosen, simulated
        expected = sum(layer.error**2 for layer in layers if layer.name in chosen)
        excess = max(1.2 * excess, simulated**2 / expected)


def _kept(role: Role, layers: Sequence[Layer], chosen: Sequence[str], unseen: Unseen) -> list[str]:
    """Those of the chosen that are within the bound together, without the ones that cost most of it alone."""
    scales = {layer.name: layer.scale for layer in layers if layer.name in chosen}

    def error(some: Mapping[str, Scale]) -> float:
        return int8_error(role, unseen.states, some, unseen.exact)

    together = error(scales)
    if together <= unseen.bound:
        return list(chosen)
    alone = {name: error({name: scale}) for name, scale in scales.items()}
    while together > unseen.bound:
        del scales[max(scales, key=lambda name: alone[name])]
        together = error(scales)
    return [name for name in chosen if name in scales]


def int8_error(role: Role, states: States, scales: Mapping[str, Scale], exact: torch.Tensor) -> float:
    """Relative error of eps with these layers in int8 and everything else in float32."""
    if not scales:
        return 0.0
    with in_int8(eligible(role), dict(scales)):
        return relative_l2(evaluate(role, states), exact)


def relative_l2(found: torch.Tensor, exact: torch.Tensor) -> float:
    """|found - exact| / |exact| in the L2 norm; the difference itself where exact is 0."""
    difference, scale = float((found - exact).norm()), float(exact.norm())
    return difference / scale if scale > 0 else difference


def _fill(layers: Iterable[Layer], room: float) -> list[str]:
    """Names in the order in which they are taken: least squared error for a second saved first, while they fit."""
    taken: list[str] = []
    for layer in sorted(layers, key=lambda layer: layer.error**2 / layer.saves):
        if layer.error**2 <= room:
            room -= layer.error**2
            taken.append(layer.name)
    return taken


def _seconds_saved(role: Role, states: States) -> dict[str, float]:
    """An estimate of what int8 saves in each layer at batch 1."""
    pixels: dict[str, int] = {}
    layers = eligible(role)

    def see(name: str, layer: Product, x: torch.Tensor) -> None:
        pixels[name] = x[0].numel() // layer.weight.shape[1]

    with watched(layers, see):
        evaluate(role, states.part(slice(0, 1)))
    weights = {name: sum(layer.weight.numel() for layer in products) for name, products in layers.items()}
    return {name: 0.5 * max(2 * weights[name] * pixels[name] / OPERATIONS, 2 * weights[name] / BYTES) for name in layers}


def _check_finite(eps: torch.Tensor) -> None:
    if not torch.isfinite(eps).all():
        raise ExportError(
            "int8 calibration: found NaN or infinity from the float32 network on states of its own chains, expected finite "
            "values; check the checkpoint and the schedule it was trained with"
        )


def _short(value: float) -> float:
    """Four digits are what a measurement on a few states is worth."""
    return float(f"{value:.4g}")
