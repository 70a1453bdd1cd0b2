"""Gradients as programs: the steps of a forward network gone back through, each as operations that the engine has.

The gradient at a convolution's input is a convolution of the gradient at its output, with the weights turned round and
inputs and outputs changed over; of stride 2 behind doubling by zeros. A norm and its activation are one operation; so is
attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from engine.errors import ExportError
from export.native import pack
from export.native.program import Assembler, Norm, Step, Value, numpy_of


@dataclass(frozen=True)
class Gradient:
    """The gradient at a map; `factor`: at the mean of its factor x factor pixels, which share it."""

    value: Value
    factor: int = 1


@dataclass
class GradientAssembler(Assembler):
    """An assembler that goes back through what it has assembled."""

    pending: dict[str, Gradient] = field(default_factory=dict)

    def norm_gradient(
        self, name: str, x: Value, gradient: Gradient, norm: Norm, activation: str, added: Gradient | None
    ) -> Value:
        """The gradient at x from the one behind its norm and activation, plus another one at x."""
        assert added is None or added.factor == gradient.factor, "both have gone through the same pools"
        value = self.tensor(name, x.channels, x.height, x.width)
        self._op(
            "norm_gradient", name, sources=[x.name, gradient.value.name], output=name,
            residual=None if added is None else added.value.name, factor=gradient.factor, activation=activation,
            norm=self._norm(name, norm),
        )  # fmt: skip
        return value

    def attention_gradient(self, name: str, qkv: Value, gradient: Value, heads: int, scale: float) -> Value:
        """The gradient at [q | k | v] from the one at what attention made of it."""
        value = self.tensor(name, qkv.channels, qkv.height, qkv.width)
        self._op(
            "attention_gradient", name, sources=[qkv.name, gradient.name], output=name, heads=heads,
            scale=float(np.float32(scale)),
        )  # fmt: skip
        return value

    def classify(
        self, name: str, source: Value, label: str, entropy: str, layer: nn.Conv1d | nn.Conv2d, *, heads: int = 0,
        scale: float = 0.0, places: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        """Begin a gradient: that of log softmax(layer(pool of source)) of the label, at source; the entropy to a port.

        heads: the pool is attention of the mean's token over [q | k | v]; `places` [1 + pixels, channels] are added.
        """
        weight = numpy_of(name, layer.weight).reshape(layer.out_channels, -1)
        assert layer.bias is not None, "a classifier's last layer has a bias"
        bias = pack.padded(numpy_of(name, layer.bias), pack.pad_to(len(weight), pack.OUTPUTS))
        value = self.tensor(name, source.channels, source.height, source.width)
        self._op(
            "classify", name, source=source.name, output=name, labels=label, output_port=entropy, factor=len(weight),
            weights=self._blob(f"{name}.weights", pack.pack_linear(weight)), bias=self._blob(f"{name}.bias", bias),
            heads=heads, scale=float(np.float32(scale)),
            places=None if places is None else self._blob(f"{name}.places", numpy_of(name, places)),
        )  # fmt: skip
        self.pending[source.name] = Gradient(value)

    def back(self, port: str) -> None:
        """From what `classify` began through all steps to the input, whose gradient goes to a port."""
        for step in reversed(list(self.steps)):
            gradient = self.pending.pop(step.output.name)
            if step.kind == "pool":
                self._give(step.sources, Gradient(gradient.value, gradient.factor * step.factor))
            elif step.kind == "attention":
                (qkv,) = step.sources
                name = f"{step.name}.gradient"
                found = self.attention_gradient(name, qkv, _whole(step, gradient), step.heads, step.scale)
                self._give(step.sources, Gradient(found))
            elif step.kind == "norm":
                self._back_norm(step, gradient)
            elif step.patches:
                self.conv(f"{step.name}.gradient", _turned(step), [_whole(step, gradient)], port=port)
            else:
                self._back_convolution(step, gradient)
        assert not self.pending, "what a program has no step for has no gradient"

    def _back_convolution(self, step: Step, gradient: Gradient) -> None:
        """Residual and skip, then the convolution, then its norm and activation."""
        (source,) = step.sources
        if step.residual is not None:
            self._give((step.residual,), gradient)
        if step.skip is not None:
            (skipped,) = step.skip.sources
            layer, name = _transposed(step.skip.weight), f"{step.name}.skip_gradient"
            self._give((skipped,), Gradient(self.conv(name, layer, [_whole(step, gradient)])))
        added = self.pending.pop(source.name, None) if step.norm is None else None
        found = Gradient(
            self.conv(
                f"{step.name}.gradient", _turned(step), [_whole(step, gradient)], stuffed=_stride(step) == 2,
                residual=None if added is None else _whole(step, added),
            )
        )  # fmt: skip
        if step.norm is not None:
            return self._back_norm(step, found)
        if step.activation != "identity":
            raise ExportError(f"layer {step.name}: found {step.activation} without a norm, expected one in a guide")
        self._give((source,), found)

    def _back_norm(self, step: Step, gradient: Gradient) -> None:
        """The norm and activation of a step's one source."""
        (source,) = step.sources
        assert step.norm is not None, "a step that has none does not come here"
        name, added = f"{step.name}.norm_gradient", self.pending.pop(source.name, None)
        found = self.norm_gradient(name, source, gradient, step.norm, step.activation, added)
        self._give(step.sources, Gradient(found))

    def _give(self, to: Sequence[Value], gradient: Gradient) -> None:
        (value,) = to
        assert value.name not in self.pending, "what adds gradients takes the one that waits"
        self.pending[value.name] = gradient


def _whole(step: Step, gradient: Gradient) -> Value:
    """A gradient that no pool has left to be shared."""
    if gradient.factor != 1:
        raise ExportError(f"layer {step.name}: found a pool right behind it, expected a norm and an activation before it")
    return gradient.value


def _stride(step: Step) -> int:
    assert step.module is not None
    return int(step.module.stride[0])


def _turned(step: Step) -> nn.Conv2d:
    """The convolution that takes the gradient at a convolution's output to the one at its input."""
    assert step.module is not None
    if step.doubled:
        raise ExportError(f"layer {step.name}: found a convolution behind doubling, expected none in a guide")
    return _transposed(step.module.weight)


def _transposed(weight: torch.Tensor) -> nn.Conv2d:
    outputs, inputs, kernel = weight.shape[:3]
    layer = nn.Conv2d(outputs, inputs, int(kernel), padding=int(kernel) // 2, bias=False, device="meta")
    turned = weight.detach().transpose(0, 1).flip(2, 3).contiguous()
    layer.weight = nn.Parameter(turned, requires_grad=False)
    return layer
