"""The scales by which the operands of int8 products become u8: static, per tensor, chosen by measured error.

u8 value = round(x / scale + zero), cut to 0..255. The operand of a residual block's convolution is SiLU(norm(x)): never
below -0.279, with a long thin tail above, so that the range is asymmetric and where to cut its top is the question. Behind
the norms of attention and transformers there is no SiLU, and a tail at either end. Four answers are tried for every operand
and the one is kept whose products come out nearest to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.result import F32
from export.graphs.roles import Role
from export.native.operands import Product, Products, eligible
from export.native.trajectory import States

BATCH = 4  # states evaluated at once
VALUES = 8192  # of one layer's input kept from each state, for percentiles and the search
TRIED_ON = 6  # states on which the candidates of a layer are compared
CUTS = np.linspace(0.3, 1.0, 15)  # fractions of the largest value, and of a tail's least, that the search tries
SILU_LEAST = -0.2785  # what SiLU is never below: a range that ends above it has no tail there to cut
LEVELS = 255
WEIGHT_LEVELS = 127  # symmetric: -128 is not used, so that a sign never changes the magnitude


@dataclass(frozen=True)
class Scale:
    """u8 = round(x / scale + zero); `rule` names where the range came from."""

    scale: float
    zero: int
    rule: str

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """x as the product sees it: quantised and back."""
        return (torch.round(x / self.scale + self.zero).clamp_(0, LEVELS) - self.zero) * self.scale


def of_range(low: float, high: float, rule: str) -> Scale:
    """The scale whose 256 levels span low..high and hold 0 exactly: padding is 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-6) / LEVELS))
    return Scale(scale, int(np.clip(round(-low / scale), 0, LEVELS)), rule)


def weight_scales(weight: F32) -> F32:
    """One scale per output channel of a weight [out, ...]: the largest magnitude is level 127."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    return np.where(largest > 0, largest / WEIGHT_LEVELS, 1.0).astype(np.float32)


def rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    """A layer's weight [out, ...], quantised and back."""
    scales = torch.from_numpy(weight_scales(weight.numpy())).reshape(-1, *([1] * (weight.dim() - 1)))
    return torch.round(weight / scales).clamp_(-WEIGHT_LEVELS, WEIGHT_LEVELS) * scales


@contextmanager
def in_int8(layers: Mapping[str, Products], scales: Mapping[str, Scale]) -> Iterator[None]:
    """Inside, the layers named in `scales` compute on quantised inputs with quantised weights."""
    with ExitStack() as stack:
        for name, scale in scales.items():
            for layer in layers[name]:
                stack.enter_context(_one_in_int8(layer, scale))
        yield


@contextmanager
def _one_in_int8(layer: Product, scale: Scale) -> Iterator[None]:
    weight = layer.weight
    handle = layer.register_forward_pre_hook(lambda _, inputs: (scale.rounded(inputs[0]),))
    layer.weight = nn.Parameter(rounded_weight(weight.detach()), requires_grad=False)
    try:
        yield
    finally:
        handle.remove()
        layer.weight = weight


def evaluate(role: Role, states: States) -> torch.Tensor:
    """The network's answer to every state, in float32."""
    output = role.outputs[0].name
    return torch.cat([role(part.inputs)[output] for part in states.batches(BATCH)])


class Ranges:
    """What one layer's input looked like: extremes over everything, and a sample of the values."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self._kept: list[F32] = []
        self._rng = np.random.default_rng(0)

    def add(self, x: torch.Tensor) -> None:
        """Take one batch of inputs [n, ...] in."""
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        flat = x.reshape(-1).numpy()
        self._kept.append(flat[self._rng.integers(0, flat.size, VALUES * len(x))])

    def candidates(self) -> list[Scale]:
        """The ranges to try: all of it, cut at two percentiles, and cut where the squared error is smallest."""
        values = np.concatenate(self._kept)
        tail = self.low < SILU_LEAST
        found = [of_range(self.low, self.high, "min-max")]
        for p in (99.99, 99.9):
            low, high = np.percentile(values, (100 - p, p))
            found.append(of_range(float(low) if tail else self.low, float(high), f"percentile {p}"))
        return [*found, self._searched(values, tail)]

    def _searched(self, values: F32, tail: bool) -> Scale:
        """Where to cut the top; then, where there is a tail below, where to cut that."""
        tops = [of_range(self.low, float(cut) * self.high, "least squares") for cut in CUTS]
        number = int(np.argmin([_squared_error(values, scale) for scale in tops]))
        if not tail:
            return tops[number]
        high = float(CUTS[number]) * self.high
        both = [of_range(float(cut) * self.low, high, "least squares") for cut in CUTS]
        return min(both, key=lambda scale: _squared_error(values, scale))


def _squared_error(values: F32, scale: Scale) -> float:
    levels = np.clip(np.rint(values / scale.scale + scale.zero), 0, LEVELS)
    return float(np.square((levels - scale.zero) * scale.scale - values).mean())


def choose_scales(role: Role, states: States) -> dict[str, Scale]:
    """The scale of every eligible operand."""
    layers = eligible(role)
    ranges = {name: Ranges() for name in layers}
    firsts = {name: products[:1] for name, products in layers.items()}  # what the others are given too
    with watched(firsts, lambda name, layer, x: ranges[name].add(x)):
        evaluate(role, states)
    candidates = {name: ranges[name].candidates() for name in layers}
    errors = {name: np.zeros(len(candidates[name])) for name in layers}

    def compare(name: str, layer: Product, x: torch.Tensor) -> None:
        weight = rounded_weight(layer.weight.detach())
        wanted = _product(layer, x, layer.weight)
        for number, scale in enumerate(candidates[name]):
            found = _product(layer, scale.rounded(x), weight)
            errors[name][number] += float((found - wanted).square().sum())

    with watched(layers, compare):
        evaluate(role, states.part(slice(None, None, max(1, len(states) // TRIED_ON))))
    return {name: candidates[name][int(errors[name].argmin())] for name in layers}


def _product(layer: Product, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the layer makes of x with this weight, without its bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    if isinstance(layer, nn.Conv1d):
        return F.conv1d(x, weight)
    return F.conv2d(x, weight, padding=layer.padding)


@contextmanager
def watched(layers: Mapping[str, Products], see: Callable[[str, Product, torch.Tensor], None]) -> Iterator[None]:
    """Inside, see(name, layer, input) is called before each of the layers runs."""
    with ExitStack() as stack:
        for name, products in layers.items():
            for layer in products:
                hook = layer.register_forward_pre_hook(lambda module, inputs, name=name: see(name, module, inputs[0]))
                stack.callback(hook.remove)
        yield
