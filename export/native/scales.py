"""The scales by which the operands of int8 products become u8: static, chosen by measured error.

u8 value = round(x / scale + zero), cut to 0..255. The operand of a residual block's convolution is SiLU(norm(x)): never
below -0.279, with a long thin tail above, so that the range is asymmetric and where to cut its top is the question. Behind
the norms of attention and transformers there is no SiLU, and a tail at either end. Four answers are tried for every operand
and the one is kept whose products come out nearest to float32.

A scale is of the whole tensor, and a few channels of what a GEGLU makes are ten times as large as most. Its first half is
linear in the product before, whose rows can divide every channel for nothing, while the columns of the product behind take
the factor back: SmoothQuant (Xiao et al. 2023), by s = max |x| ^ a / max |w| ^ (1 - a) of each channel. The four answers are
tried with that and without. On the text model of examples/avatars-latent a feed-forward's second matrix is off by 0.014 to
0.031 without it, by 0.007 to 0.013 with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from engine.result import F32
from export.graphs.roles import Role
from export.native.operands import Product, Products, eligible, smoothable
from export.native.trajectory import States

I64 = NDArray[np.int64]

BATCH = 4  # states evaluated at once
VALUES = 8192  # of one layer's input kept from each state, for percentiles and the search
TRIED_ON = 6  # states on which the candidates of a layer are compared
CUTS = np.linspace(0.3, 1.0, 15)  # fractions of the largest value, and of a tail's least, that the search tries
SILU_LEAST = -0.2785  # what SiLU is never below: a range that ends above it has no tail there to cut
LEVELS = 255
SMOOTHED, LARGEST_SMOOTH = 0.75, 64.0  # a; and what s may be at most, and one over it at least, about their mean
WEIGHT_LEVELS = 127  # symmetric: -128 is not used, so that a sign never changes the magnitude


@dataclass(frozen=True)
class Scale:
    """u8 = round(x / smooth / scale + zero); `rule` names where the range came from.

    smooth: what the product before divides each channel by, of an operand whose last dimension is the channels; () for none.
    """

    scale: float
    zero: int
    rule: str
    smooth: tuple[float, ...] = ()

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """x as the product sees it: quantised and back."""
        if self.smooth:
            by = torch.tensor(self.smooth)
            return replace(self, smooth=()).rounded(x / by) * by
        return (torch.round(x / self.scale + self.zero).clamp_(0, LEVELS) - self.zero) * self.scale


def of_range(low: float, high: float, rule: str, smooth: tuple[float, ...] = ()) -> Scale:
    """The scale whose 256 levels span low..high and hold 0 exactly: padding is 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-6) / LEVELS))
    return Scale(scale, int(np.clip(round(-low / scale), 0, LEVELS)), rule, smooth)


def weight_scales(weight: F32) -> F32:
    """One scale per output channel of a weight [out, ...]: the largest magnitude is level 127."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    return np.where(largest > 0, largest / WEIGHT_LEVELS, 1.0).astype(np.float32)


def rounded_weight(weight: torch.Tensor, smooth: tuple[float, ...] = ()) -> torch.Tensor:
    """A layer's weight [out, ...], quantised and back; a matrix's [out, in] times what its operand was divided by."""
    if smooth:
        by = torch.tensor(smooth)
        return rounded_weight(weight * by) / by
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
    layer.weight = nn.Parameter(rounded_weight(weight.detach(), scale.smooth), requires_grad=False)
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
    """What one layer's input looked like: extremes over everything, and a sample of the values.

    channels: of the last dimension, each of which has its extremes; 1 for an input that is taken as a whole.
    """

    def __init__(self, channels: int = 1) -> None:
        self._low, self._high = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
        self._kept: list[F32] = []
        self._channels: list[I64] = []
        self._rng = np.random.default_rng(0)

    def add(self, x: torch.Tensor) -> None:
        """Take one batch of inputs [n, ...] in."""
        flat = x.reshape(-1).numpy()
        rows = flat.reshape(-1, len(self._low))
        self._low, self._high = np.minimum(self._low, rows.min(axis=0)), np.maximum(self._high, rows.max(axis=0))
        taken = self._rng.integers(0, flat.size, VALUES * len(x))
        self._kept.append(flat[taken])
        self._channels.append(taken % len(self._low))

    def smooth(self, weight: F32) -> tuple[float, ...]:
        """What to divide each channel by before a product with this weight [out, channels]."""
        largest, columns = np.maximum(-self._low, self._high), np.abs(weight).max(axis=0)
        live = (largest > 0) & (columns > 0)
        found = np.ones(len(columns))
        found[live] = largest[live] ** SMOOTHED / columns[live] ** (1 - SMOOTHED)
        found[live] /= np.exp(np.log(found[live]).mean()) if live.any() else 1.0
        return tuple(map(float, found.clip(1 / LARGEST_SMOOTH, LARGEST_SMOOTH).astype(np.float32)))

    def candidates(self, smooth: tuple[float, ...] = ()) -> list[Scale]:
        """The ranges to try: all of it, cut at two percentiles, and cut where the squared error is smallest."""
        by = np.array(smooth or [1.0], np.float32)
        values = np.concatenate(self._kept) / by[np.concatenate(self._channels) % len(by)]
        least, most = float((self._low / by).min()), float((self._high / by).max())
        tail = least < SILU_LEAST
        found = [(least, most, "min-max")]
        for p in (99.99, 99.9):
            low, high = np.percentile(values, (100 - p, p))
            found.append((float(low) if tail else least, float(high), f"percentile {p}"))
        found.append((*_searched(values, least, most, tail), "least squares"))
        return [of_range(low, high, f"{rule}, smoothed" if smooth else rule, smooth) for low, high, rule in found]


def _searched(values: F32, low: float, high: float, tail: bool) -> tuple[float, float]:
    """Where to cut the top; then, where there is a tail below, where to cut that."""
    tops = [(low, float(cut) * high) for cut in CUTS]
    top = min(tops, key=lambda ends: _squared_error(values, *ends))
    if not tail:
        return top
    return min(((float(cut) * low, top[1]) for cut in CUTS), key=lambda ends: _squared_error(values, *ends))


def _squared_error(values: F32, low: float, high: float) -> float:
    scale = of_range(low, high, "tried")
    levels = np.clip(np.rint(values / scale.scale + scale.zero), 0, LEVELS)
    return float(np.square((levels - scale.zero) * scale.scale - values).mean())


def choose_scales(role: Role, states: States) -> dict[str, Scale]:
    """The scale of every eligible operand."""
    layers, able = eligible(role), smoothable(role)
    ranges = {name: Ranges(products[0].weight.shape[1] if name in able else 1) for name, products in layers.items()}
    firsts = {name: products[:1] for name, products in layers.items()}  # what the others are given too
    with watched(firsts, lambda name, layer, x: ranges[name].add(x)):
        evaluate(role, states)
    candidates = {name: ranges[name].candidates() for name in layers}
    for name in able:
        (product,) = layers[name]
        candidates[name] += ranges[name].candidates(ranges[name].smooth(product.weight.detach().numpy()))
    errors = {name: np.zeros(len(candidates[name])) for name in layers}

    def compare(name: str, layer: Product, x: torch.Tensor) -> None:
        weights = {by: rounded_weight(layer.weight.detach(), by) for by in {scale.smooth for scale in candidates[name]}}
        wanted = _product(layer, x, layer.weight)
        for number, scale in enumerate(candidates[name]):
            found = _product(layer, scale.rounded(x), weights[scale.smooth])
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
