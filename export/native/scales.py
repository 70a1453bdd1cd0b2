"""The scales by which the inputs of int8 convolutions become u8: static, per tensor, chosen by measured error.

u8 value = round(x / scale + zero), cut to 0..255. The input of such a convolution is SiLU(norm(x)): never below -0.279,
with a long thin tail above, so that the range is asymmetric and where to cut its top is the question. Four answers are
tried for every layer and the one is kept whose convolution comes out nearest to float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine.result import F32
from export.graphs.roles import Role
from export.models.graphs import ConditionedDenoiser, Denoiser
from export.models.openai.graphs import OpenAIDenoiser
from export.models.openai.unet import OpenAIUNet
from export.models.unet import UNet
from export.native.trajectory import States

BATCH = 4  # states evaluated at once
VALUES = 8192  # of one layer's input kept from each state, for percentiles and the search
TRIED_ON = 6  # states on which the candidates of a layer are compared
CUTS = np.linspace(0.3, 1.0, 15)  # fractions of the largest value that the search tries
LEVELS = 255
WEIGHT_LEVELS = 127  # symmetric: -128 is not used, so that a sign never changes the magnitude


@dataclass(frozen=True)
class Scale:
    """u8 = round(x / scale + zero); `rule` names where the range came from."""

    scale: float
    zero: int
    rule: str

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """x as the convolution sees it: quantised and back."""
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
    """A convolution's weight, quantised and back."""
    scales = torch.from_numpy(weight_scales(weight.numpy())).reshape(-1, *([1] * (weight.dim() - 1)))
    return torch.round(weight / scales).clamp_(-WEIGHT_LEVELS, WEIGHT_LEVELS) * scales


def unet_of(role: Role) -> UNet | OpenAIUNet:
    """The UNet behind a graph."""
    assert isinstance(role.module, Denoiser | ConditionedDenoiser | OpenAIDenoiser), "int8 is for denoisers"
    return role.module.unet


def eligible(role: Role) -> dict[str, nn.Conv2d]:
    """The convolutions that may run in int8, by module name, in the order of running: both of every residual block.

    Their inputs are written by a norm, which quantises in passing. The first and last layers, skips, attention and the
    resampling convolutions read what others read too, and are a few percent of the work.
    """
    unet = unet_of(role)
    names = {module: name for name, module in unet.named_modules()}
    return {names[conv]: conv for conv in unet.residual_convolutions()}


@contextmanager
def in_int8(layers: dict[str, nn.Conv2d], scales: dict[str, Scale]) -> Iterator[None]:
    """Inside, the layers named in `scales` compute on quantised inputs with quantised weights."""
    with ExitStack() as stack:
        for name, scale in scales.items():
            stack.enter_context(_one_in_int8(layers[name], scale))
        yield


@contextmanager
def _one_in_int8(layer: nn.Conv2d, scale: Scale) -> Iterator[None]:
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
        """Take one batch of inputs [n, C, H, W] in."""
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        flat = x.reshape(-1).numpy()
        self._kept.append(flat[self._rng.integers(0, flat.size, VALUES * len(x))])

    def candidates(self) -> list[Scale]:
        """The ranges to try: all of it, cut at two percentiles, and cut where the squared error is smallest."""
        values = np.concatenate(self._kept)
        cuts = {"min-max": self.high}
        cuts |= {f"percentile {p}": float(np.percentile(values, p)) for p in (99.99, 99.9)}
        found = [of_range(self.low, high, rule) for rule, high in cuts.items()]
        searched = [of_range(self.low, float(cut) * self.high, "least squares") for cut in CUTS]
        return [*found, min(searched, key=lambda scale: _squared_error(values, scale))]


def _squared_error(values: F32, scale: Scale) -> float:
    levels = np.clip(np.rint(values / scale.scale + scale.zero), 0, LEVELS)
    return float(np.square((levels - scale.zero) * scale.scale - values).mean())


def choose_scales(role: Role, states: States) -> dict[str, Scale]:
    """The scale of every eligible layer's input."""
    layers = eligible(role)
    ranges = {name: Ranges() for name in layers}
    with _watched(layers, lambda name, layer, x: ranges[name].add(x)):
        evaluate(role, states)
    candidates = {name: ranges[name].candidates() for name in layers}
    errors = {name: np.zeros(len(candidates[name])) for name in layers}

    def compare(name: str, layer: nn.Conv2d, x: torch.Tensor) -> None:
        weight = rounded_weight(layer.weight.detach())
        wanted = F.conv2d(x, layer.weight, padding=1)
        for number, scale in enumerate(candidates[name]):
            found = F.conv2d(scale.rounded(x), weight, padding=1)
            errors[name][number] += float((found - wanted).square().sum())

    with _watched(layers, compare):
        evaluate(role, states.part(slice(None, None, max(1, len(states) // TRIED_ON))))
    return {name: candidates[name][int(errors[name].argmin())] for name in layers}


@contextmanager
def _watched(layers: dict[str, nn.Conv2d], see: Any) -> Iterator[None]:
    """Inside, see(name, layer, input) is called before each of the layers runs."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(lambda module, inputs, name=name: see(name, module, inputs[0]))
            stack.callback(hook.remove)
        yield
