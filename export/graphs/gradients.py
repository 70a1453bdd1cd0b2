"""The gradient of a torch function as a graph of forward operations, which every runtime has.

Autograd is run once, on a trace: what it computes is recorded operation by operation. Each backward operation is written in
forward ones (BACKWARD), so that what ONNX is made of knows nothing of a gradient. No scatter and no transposed convolution:
OpenVINO is silently wrong where one shares its weight with a convolution, and torch's exporter merges equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from engine.errors import ExportError

Tensor = torch.Tensor
aten = torch.ops.aten


def traced(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """What a function computes, gradients included, for any batch. ExportError names a backward operation that is not here.

    inputs: of batch 2 or more, which no other dimension equals: tracing takes equal sizes for the same one, and 1 for a
    constant.
    """
    module = make_fx(
        function, decomposition_table=BACKWARD, tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(*inputs).eval()  # fmt: skip
    for node in module.graph.nodes:
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    _part_squares(module)
    module.graph.eliminate_dead_code()
    left = sorted({str(node.target) for node in module.graph.nodes if "backward" in str(node.target)})
    if left:
        raise ExportError(
            f"found {', '.join(left)} in the gradient, for which there is no form in forward operations, expected layers "
            "whose gradient has one (convolutions, linear layers, group, layer and batch norm, attention, pooling)"
        )
    module.recompile()
    return module


def _part_squares(module: fx.GraphModule) -> None:
    """Give the gradient of each linear layer with a square weight W its own copy of that, the transposed one.

    It multiplies by W, and the layer by W transposed. Both are reads of one constant, for which OpenVINO 2026.4 takes the
    same packed weights where their shapes are equal, and is silently wrong.
    """
    for number, node in enumerate(list(module.graph.nodes)):
        once = node.args[0] if node.target is aten.t.default else None
        if not isinstance(once, fx.Node) or once.target is not aten.t.default:
            continue
        source = once.args[0]
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            continue
        weight = getattr(module, str(source.target))
        if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
            continue
        module.register_buffer(f"_transposed_{number}", weight.detach().t().contiguous())
        with module.graph.inserting_before(node):
            copy = module.graph.get_attr(f"_transposed_{number}")
            node.replace_all_uses_with(module.graph.call_function(aten.t.default, (copy,)))


# ---- convolutions and pooling ----------------------------------------------------------------------


def convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: object, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: object, groups: int, mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """With respect to x: a convolution with the kernel rotated and channels swapped; of stride s one of s * s times as many
    outputs, which are pixels of the result."""
    if not mask[0]:
        return None, None, None
    if transposed or mask[1] or mask[2] or groups != 1 or max(dilation) != 1:
        raise ExportError("found a convolution that is transposed, grouped, dilated or trained, expected a plain one")
    axes = list(range(2, weight.ndim))
    if max(stride) == 1:
        pads = [size - 1 - pad for size, pad in zip(weight.shape[2:], padding, strict=True)]
        rotated = weight.flip(axes).transpose(0, 1)
        plain = ([1] * len(axes), False, [0] * len(axes), 1)  # not dilated, not transposed, one group
        return aten.convolution(gradient, rotated, None, stride, pads, *plain), None, None
    s, (outputs, inputs, high, wide) = stride[0], weight.shape
    rows, columns = math.ceil(high / s), math.ceil(wide / s)
    parts = F.pad(weight, (0, columns * s - wide, 0, rows * s - high)).reshape(outputs, inputs, rows, s, columns, s)
    parts = parts.permute(1, 3, 5, 0, 2, 4).reshape(inputs * s * s, outputs, rows, columns).flip([2, 3])
    whole = F.pixel_shuffle(F.conv2d(gradient, parts, padding=(rows - 1, columns - 1)), s)
    return _cut(whole, padding, x), None, None


def _cut(whole: Tensor, padding: Sequence[int], x: Tensor) -> Tensor:
    """The pixels of x, without padding; what no window reached is zero."""
    (top, left), (high, wide) = padding, x.shape[2:]
    more = (0, max(0, left + wide - whole.shape[3]), 0, max(0, top + high - whole.shape[2]))
    return (F.pad(whole, more) if any(more) else whole)[:, :, top : top + high, left : left + wide]


def avg_pool2d_backward(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], *rest: object
) -> Tensor:
    """Each window's share, repeated over it."""
    (high, wide), (n, channels, rows, columns) = kernel, gradient.shape
    if list(stride or kernel) != list(kernel) or any(padding):
        raise ExportError("found average pooling whose windows overlap or are padded, expected windows side by side")
    share = (gradient / (high * wide)).reshape(n, channels, rows, 1, columns, 1)
    return share.expand(n, channels, rows, high, columns, wide).reshape(n, channels, rows * high, columns * wide)


def upsample_nearest2d_backward(
    gradient: Tensor, output_size: object, input_size: Sequence[int], *scales: object
) -> Tensor:
    """The sum over the pixels that were copied."""
    n, channels, high, wide = input_size
    down, across = gradient.shape[2] // high, gradient.shape[3] // wide
    return gradient.reshape(n, channels, high, down, wide, across).sum((3, 5))


def max_pool2d_backward(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], *rest: object
) -> Tensor:
    """The largest of each window found once more, as places in a window and not as indices, which would scatter."""
    (high, wide), (s, _), (top, left) = kernel, stride, padding
    n, channels, rows, columns = gradient.shape
    down, across = math.ceil(high / s), math.ceil(wide / s)
    padded = F.pad(x, (left, left + s, top, top + s), value=-3e38)
    windows = torch.stack(
        [padded[:, :, i : i + s * (rows - 1) + 1 : s, j : j + s * (columns - 1) + 1 : s]
         for i in range(high) for j in range(wide)], 2
    )  # fmt: skip
    places = torch.arange(high * wide)[:, None, None]
    hit = (places == windows.argmax(2, keepdim=True)).to(gradient.dtype) * gradient.unsqueeze(2)
    hit = F.pad(hit.reshape(n, channels, high, wide, rows, columns), (0, 0, 0, 0, 0, across * s - wide, 0, down * s - high))
    hit = hit.reshape(n, channels, down, s, across, s, rows, columns)
    whole = sum(
        F.pad(hit[:, :, i, :, j], (j, across - 1 - j, i, down - 1 - i)) for i in range(down) for j in range(across)
    )
    assert isinstance(whole, Tensor)
    return _cut(F.pixel_shuffle(whole.reshape(n, channels * s * s, *whole.shape[4:]), s), padding, x)


# ---- norms -----------------------------------------------------------------------------------------


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[N, groups, channels of one, ...]: in five dimensions, as TensorRT for RTX cannot build it in three."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """One number a group beside `_grouped(x)`."""
    return values.reshape(*values.shape, *[1] * (x.ndim - 1))


def _per_channel(values: Tensor | None, x: Tensor, groups: int, absent: float = 1.0) -> Tensor | float:
    """A norm's weight or bias beside `_grouped(x)`; `absent` where it has none."""
    if values is None:
        return absent
    return values.reshape(1, groups, x.shape[1] // groups, *[1] * (x.ndim - 2))


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: object, channels: object, pixels: object, groups: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The norm itself, in the expressions that its gradient repeats, so that they are computed once."""
    axes = list(range(2, x.ndim + 1))
    mean = _grouped(x, groups).mean(axes)
    centred = _grouped(x, groups) - _beside(mean, x)
    scale = (centred.square().mean(axes) + epsilon).rsqrt()
    normed = centred * _beside(scale, x) * _per_channel(weight, x, groups) + _per_channel(bias, x, groups, 0.0)
    return normed.reshape(x.shape), mean, scale


def group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, n: object, channels: object,
    pixels: object, groups: int, mask: object,
) -> tuple[Tensor, None, None]:  # fmt: skip
    """d x = scale (g - mean g - x^ mean(g x^)) with g = gradient weight, x^ the normed values."""
    axes = list(range(2, x.ndim + 1))
    normed = (_grouped(x, groups) - _beside(mean, x)) * _beside(scale, x)
    g = _grouped(gradient, groups) * _per_channel(weight, x, groups)
    dx = g - g.mean(axes, keepdim=True) - normed * (g * normed).mean(axes, keepdim=True)
    return (dx * _beside(scale, x)).reshape(x.shape), None, None


def layer_norm(
    x: Tensor, shape: object, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As group_norm."""
    mean = x.mean(-1, keepdim=True)
    scale = ((x - mean).square().mean(-1, keepdim=True) + epsilon).rsqrt()
    normed = (x - mean) * scale
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias, mean, scale


def layer_norm_backward(
    gradient: Tensor, x: Tensor, shape: object, mean: Tensor, scale: Tensor, weight: Tensor | None, bias: object,
    mask: object,
) -> tuple[Tensor, None, None]:  # fmt: skip
    """As group_norm_backward."""
    normed, g = (x - mean) * scale, gradient if weight is None else gradient * weight
    dx = g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True)
    return dx * scale, None, None


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """In evaluation: a scale and a shift a channel."""
    scale, shape = _scale(weight, variance, epsilon), [1, -1] + [1] * (x.ndim - 2)
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * scale.reshape(shape) + shift.reshape(shape), mean, variance


def _scale(weight: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    scale = (variance + epsilon).rsqrt()
    return scale if weight is None else weight * scale


def batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, variance: Tensor, saved_mean: object,
    saved_scale: object, training: object, epsilon: float, mask: object,
) -> tuple[Tensor, None, None]:  # fmt: skip
    """The same scale."""
    scale = _scale(weight, variance, epsilon)
    return gradient * scale.reshape([1, -1] + [1] * (x.ndim - 2)), None, None


# ---- elementwise, softmax, indexing ----------------------------------------------------------------


def silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """d x sigmoid(x)."""
    s = x.sigmoid()
    return gradient * s * (1 + x * (1 - s))


def gelu_backward(gradient: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """d x Phi(x), by erf."""
    if approximate != "none":
        raise ExportError(f"found a GELU approximated by {approximate}, expected that of the error function")
    return gradient * (0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * torch.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5)


def threshold_backward(gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Of ReLU."""
    return gradient * (x > threshold).to(gradient.dtype)


def softmax_backward(gradient: Tensor, y: Tensor, axis: int, dtype: object) -> Tensor:
    """y (g - sum g y)."""
    return y * (gradient - (gradient * y).sum(axis, keepdim=True))


def log_softmax_backward(gradient: Tensor, y: Tensor, axis: int, dtype: object) -> Tensor:
    """g - exp(y) sum g."""
    return gradient - y.exp() * gradient.sum(axis, keepdim=True)


def select_backward(gradient: Tensor, sizes: Sequence[int], axis: int, index: int) -> Tensor:
    """By a mask, since a scatter is not everywhere."""
    hit = (torch.arange(sizes[axis]) == index % sizes[axis]).to(gradient.dtype)
    return gradient.unsqueeze(axis) * hit.reshape([-1 if i == axis % len(sizes) else 1 for i in range(len(sizes))])


def slice_backward(gradient: Tensor, sizes: Sequence[int], axis: int, start: int, end: int, step: int) -> Tensor:
    """Zeros before and behind."""
    after = sizes[axis] - start - gradient.shape[axis]
    return F.pad(gradient, [0, 0] * (len(sizes) - 1 - axis % len(sizes)) + [start, after])


BACKWARD: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten.upsample_nearest2d_backward.default: upsample_nearest2d_backward,
    aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
    aten.native_group_norm.default: group_norm,
    aten.native_group_norm_backward.default: group_norm_backward,
    aten.native_layer_norm.default: layer_norm,
    aten.native_layer_norm_backward.default: layer_norm_backward,
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.native_batch_norm_backward.default: batch_norm_backward,
    aten.silu_backward.default: silu_backward,
    aten.gelu_backward.default: gelu_backward,
    aten.threshold_backward.default: threshold_backward,
    aten._softmax_backward_data.default: softmax_backward,
    aten._log_softmax_backward_data.default: log_softmax_backward,
    aten.select_backward.default: select_backward,
    aten.slice_backward.default: slice_backward,
}
