"""Programs of the native engine as they are written: operations in order, with the weights they name, then two files.

Every operation is checked here against what the engine can do; a layer that it cannot express ends the build by name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from engine.backends.native.program import FORMAT, VERSION
from engine.backends.native.weights import ALIGNMENT
from engine.errors import ExportError
from engine.kernels.native_library import MAX_SOURCES
from export.native import pack
from export.native.scales import WEIGHT_LEVELS, Scale, weight_scales

F32 = NDArray[np.float32]
MAX_ATTENTION_PIXELS, MAX_SIDE = 1 << 14, 1024  # kMostAttended and kMostSide of kernels/native/operation_check.h
MAX_GRADIENT_PIXELS = 1 << 12  # kMostGradientPixels of kernels/native/gradient_check.cpp
MAX_CODE_CHANNELS = 64  # kMostCodeChannels of kernels/native/target.h
FILTER = 4  # the kernel of a filtered pool or upsample
MAX_ROW = 1 << 28  # kMostRow of kernels/native/operation_check.h

_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.uint16): "BF16", np.dtype(np.int8): "I8"}


@dataclass(frozen=True)
class Value:
    """A tensor of the program: a map, or float32 rows of steps, of the batch, or of every pair of them."""

    name: str
    channels: int
    height: int = 1
    width: int = 1
    rows: str = "none"


@dataclass(frozen=True)
class Norm:
    """A norm in front of a convolution; `scale_row`: where in the row a GroupNorm's scale begins, the shift behind it."""

    module: nn.GroupNorm | nn.LayerNorm
    scale_row: int | None = None


@dataclass(frozen=True)
class Skip:
    """A 1 x 1 convolution of other maps, without norm or activation, that is added."""

    sources: Sequence[Value]
    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class Step:
    """A convolution, a norm, an attention or a pool as it was asked for: what a gradient goes back through."""

    kind: str
    name: str
    sources: tuple[Value, ...]
    output: Value
    module: nn.Conv2d | None = None
    norm: Norm | None = None
    activation: str = "identity"
    residual: Value | None = None
    skip: Skip | None = None
    patches: bool = False
    doubled: bool = False
    heads: int = 0
    scale: float = 0.0
    factor: int = 1


@dataclass(frozen=True)
class Assembled:
    """The two files of an engine."""

    program: bytes
    weights: bytes


@dataclass
class Assembler:
    """Collects ports, tensors, operations and weights of one graph."""

    graph: str
    precision: str
    ports: list[dict[str, Any]] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    ops: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, NDArray[Any]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    # ---- what goes in and out --------------------------------------------------------------------

    def port(
        self,
        name: str,
        kind: str,
        channels: int,
        height: int = 1,
        width: int = 1,
        *,
        output: bool = False,
        rows: str = "none",
    ) -> str:
        """Declare an input or output array; its name again."""
        sizes = {"channels": channels, "height": height, "width": width}
        self.ports.append({"name": name, "kind": kind, "output": output, **sizes, "rows": rows})
        return name

    def tensor(self, name: str, channels: int, height: int = 1, width: int = 1, rows: str = "none") -> Value:
        """Declare a value inside the program."""
        self.tensors.append({"name": name, "rows": rows, "channels": channels, "height": height, "width": width})
        return Value(name, channels, height, width, rows)

    def input(
        self, name: str, ports: Sequence[str], channels: int, height: int, width: int, kernel: int = 1, stride: int = 1
    ) -> Value:
        """A map of every `stride`-th pixel of input ports; kernel 3: of their 3 x 3 patches, so that a first convolution
        is a 1 x 1, and behind them of what rounding to bf16 leaves out of the first port, the state, which costs little
        there."""
        factor = 2 if kernel == 3 else 1
        again = next(port["channels"] for port in self.ports if port["name"] == ports[0]) if factor == 2 else 0
        value = self.tensor(name, (channels + again) * kernel**2, height, width)
        self._input(name, ports, kernel=kernel, stride=stride, factor=factor)
        return value

    def input_slice(self, name: str, port: str, offset: int, channels: int, height: int, width: int) -> Value:
        """A map of the values of an input port of 1 x 1, from `offset` on."""
        value = self.tensor(name, channels, height, width)
        self._input(name, [port], offset=offset)
        return value

    def input_tokens(self, name: str, port: str, channels: int, tokens: int) -> Value:
        """Tokens of an input port as a map of one a row."""
        value = self.tensor(name, channels, tokens)
        self._input(name, [port])
        return value

    def input_rows(self, name: str, port: str, channels: int) -> Value:
        """Rows of the batch from an input port."""
        value = self.tensor(name, channels, rows="batch")
        self._input(name, [port])
        return value

    def _input(
        self,
        name: str,
        ports: Sequence[str],
        *,
        kernel: int = 1,
        stride: int = 1,
        factor: int = 1,
        offset: int | None = None,
    ) -> None:
        self._op(
            "input", name, sources=list(ports), output=name, kernel=kernel, stride=stride, factor=factor, offset=offset
        )

    # ---- maps ------------------------------------------------------------------------------------

    def conv(
        self,
        name: str,
        module: nn.Conv2d,
        sources: Sequence[Value],
        *,
        norm: Norm | None = None,
        activation: str = "identity",
        residual: Value | None = None,
        residual_scale: float = 1.0,
        skip: Skip | None = None,
        bias_row: int | None = None,
        int8: Scale | None = None,
        doubled: bool = False,
        stuffed: bool = False,
        far_padding: bool = False,
        port: str | None = None,
        output_activation: str = "identity",
        patches: bool = False,
    ) -> Value:
        """norm -> activation -> convolution + bias + row + skip + residual, to a new tensor or to an output port.

        residual_scale: what the residual is multiplied by.
        doubled: nearest doubling in front.  stuffed: doubling by zeros in front.  far_padding: the module pads nothing
        itself, its input is padded right and bottom.  patches: the source is `input` with kernel 3.
        """
        kernel, stride = self._check_conv(name, module, sources, doubled=doubled or stuffed, far_padding=far_padding)
        source = sources[0]
        factor = 2 if doubled or stuffed else 1
        height, width = factor * source.height // stride, factor * source.width // stride
        outputs = module.out_channels
        padded = pack.pad_to(outputs, pack.OUTPUTS if port else pack.BLOCK)
        weight = numpy_of(name, module.weight)
        bias = np.zeros(outputs, np.float32) if module.bias is None else numpy_of(name, module.bias)
        if skip is not None and skip.bias is not None:
            bias = bias + numpy_of(name, skip.bias)
        flat = weight.reshape(outputs, weight.shape[1], -1)
        if patches:  # some lie there twice, the second time what rounding left out
            once = weight.reshape(outputs, -1, 1)
            flat = np.concatenate([once, once[:, : source.channels - once.shape[1]]], axis=1)
        channels = [value.channels // (2 if activation == "geglu" else 1) for value in sources]
        phases = pack.fold_doubling(weight, stuffed) if factor == 2 else [flat]
        quantised = None if int8 is None else self._quantised(name, flat, channels, padded, int8, bias)
        if quantised is None:
            packed = np.stack([pack.pack_bf16(phase, channels, padded) for phase in phases])
            self._blob(f"{name}.weights", packed)
            self._blob(f"{name}.bias", np.tile(pack.padded(bias, padded), len(phases)))
        pad = 0 if patches or far_padding else int(module.padding[0])
        self._op(
            "conv", name, sources=[value.name for value in sources], output=None if port else name, output_port=port,
            kernel=1 if patches else kernel, stride=stride, pad_top=pad, pad_left=pad, upsample=factor == 2,
            norm=self._norm(name, norm), activation=activation, weights=f"{name}.weights", bias=f"{name}.bias",
            bias_row=bias_row, residual=residual.name if residual else None,
            residual_scale=float(np.float32(residual_scale)), skip=self._skip(name, skip, padded),
            output_activation=output_activation, int8=quantised,
        )  # fmt: skip
        value = Value(name, outputs, height, width) if port else self.tensor(name, outputs, height, width)
        self.steps.append(
            Step("conv", name, tuple(sources), value, module, norm, activation, residual, skip, patches, factor == 2)
        )
        return value

    def norm(
        self, name: str, sources: Sequence[Value], norm: Norm, activation: str = "identity", modulation: Value | None = None
    ) -> Value:
        """activation(norm) of maps together as a map; modulation: [g | b], by which the norm is scaled (1 + g) and shifted
        before the row is."""
        channels = sum(source.channels for source in sources)
        value = self.tensor(name, channels, sources[0].height, sources[0].width)
        self._op(
            "norm", name, sources=[source.name for source in sources], output=name, norm=self._norm(name, norm),
            activation=activation, modulation=None if modulation is None else modulation.name,
        )  # fmt: skip
        self.steps.append(Step("norm", name, tuple(sources), value, norm=norm, activation=activation))
        return value

    def attention(self, name: str, sources: Sequence[Value], heads: int, scale: float, keys: int = 0) -> Value:
        """softmax(scale q k^T) v over the pixels of [q | k | v], or of q and another map: its channels from `keys` on are k,
        then v."""
        first = sources[0]
        channels = first.channels // (3 if len(sources) == 1 else 1)
        if channels % heads:
            raise ExportError(f"layer {name}: found {channels} channels for {heads} heads, expected a multiple of the heads")
        value = self.tensor(name, channels, first.height, first.width)
        self._op(
            "attention", name, sources=[source.name for source in sources], output=name, heads=heads, keys=keys,
            scale=float(np.float32(scale)),
        )  # fmt: skip
        self.steps.append(Step("attention", name, tuple(sources), value, heads=heads, scale=scale))
        return value

    def pool(self, name: str, source: Value, factor: int) -> Value:
        """The mean over factor x factor pixels."""
        if source.height % factor or source.width % factor:
            raise ExportError(
                f"layer {name}: found pooling of {source.height} x {source.width} by {factor}, expected a divisor of the "
                f"size; the native engine has no other pooling: leave it out of --backends"
            )
        value = self.tensor(name, source.channels, source.height // factor, source.width // factor)
        self._op("pool", name, source=source.name, output=name, factor=factor, kernel=0)
        self.steps.append(Step("pool", name, (source,), value, factor=factor))
        return value

    def upsample(self, name: str, source: Value, factor: int) -> Value:
        """Nearest neighbour."""
        value = self.tensor(name, source.channels, source.height * factor, source.width * factor)
        self._op("upsample", name, source=source.name, output=name, factor=factor, kernel=0)
        return value

    def filtered(self, name: str, source: Value, *, up: bool) -> Value:
        """Twice or half the size, by the filter 1-3-3-1 in either direction."""
        height, width = (2 * side if up else side // 2 for side in (source.height, source.width))
        value = self.tensor(name, source.channels, height, width)
        self._op("upsample" if up else "pool", name, source=source.name, output=name, factor=2, kernel=FILTER)
        return value

    # ---- stored tables ---------------------------------------------------------------------------

    def embed(
        self, name: str, ids: str, size: tuple[int, int], table: torch.Tensor, *, places: torch.Tensor | None = None,
        side: int = 1, port: str | None = None,
    ) -> Value:  # fmt: skip
        """The rows [entries, C] that ids of height x width name, each side x side of them in the mean, plus a row a place;
        as a map, or to an output port in float32, after which the value is no operation's to read."""
        height, width, channels = size[0] // side, size[1] // side, table.shape[1]
        self._op(
            "embed", name, source=ids, output=None if port else name, output_port=port, factor=table.shape[0], stride=side,
            weights=self._blob(f"{name}.weights", numpy_of(name, table)),
            places=None if places is None else self._blob(f"{name}.places", numpy_of(name, places)),
        )  # fmt: skip
        return Value(name, channels, height, width) if port else self.tensor(name, channels, height, width)

    def nearest(self, name: str, source: str, codes: torch.Tensor, scale: float, port: str) -> None:
        """scale times the code [entries, C] that is nearest to a port's values over scale, at every pixel, to a port."""
        values = numpy_of(name, codes)
        halves = np.full(pack.pad_to(len(values), pack.OUTPUTS), np.inf, np.float32)
        halves[: len(values)] = np.square(values).sum(axis=1) / 2
        self._op(
            "nearest", name, source=source, output_port=port, factor=len(values), scale=float(np.float32(scale)),
            weights=self._blob(f"{name}.weights", pack.pack_linear(values)), halves=self._blob(f"{name}.halves", halves),
        )  # fmt: skip

    # ---- rows ------------------------------------------------------------------------------------

    def lookup(self, name: str, port: str, table: torch.Tensor) -> Value:
        """Rows of a stored table by the timesteps."""
        value = self.tensor(name, table.shape[1], rows="steps")
        self._blob(f"{name}.weights", numpy_of(name, table))
        self._op("lookup", name, source=port, output=name, factor=table.shape[0], weights=f"{name}.weights")
        return value

    def linear(
        self,
        name: str,
        source: Value,
        weight: torch.Tensor,
        bias: torch.Tensor,
        *,
        silu: bool = False,
        port: str | None = None,
    ) -> Value:
        """A matrix over rows, behind a SiLU where asked for."""
        outputs = weight.shape[0]
        self._blob(f"{name}.weights", pack.pack_linear(numpy_of(name, weight)))
        self._blob(f"{name}.bias", pack.padded(numpy_of(name, bias), pack.pad_to(outputs, pack.OUTPUTS)))
        self._op(
            "linear", name, source=source.name, output=None if port else name, output_port=port,
            activation="silu" if silu else "identity", weights=f"{name}.weights", bias=f"{name}.bias",
        )  # fmt: skip
        return Value(name, outputs, rows=source.rows) if port else self.tensor(name, outputs, rows=source.rows)

    def add(self, name: str, steps: Value, batch: Value) -> Value:
        """Every row of steps with every row of the batch."""
        value = self.tensor(name, steps.channels, rows="pairs")
        self._op("add", name, sources=[steps.name, batch.name], output=name)
        return value

    # ---- the files -------------------------------------------------------------------------------

    def finish(self) -> Assembled:
        """The program as JSON and the weights as safetensors; the same bytes for the same model."""
        program = {
            "format": FORMAT, "version": VERSION, "graph": self.graph, "precision": self.precision,
            "ports": self.ports, "tensors": self.tensors, "ops": self.ops,
        }  # fmt: skip
        header, end = {}, 0
        for name, blob in self.blobs.items():
            header[name] = {
                "dtype": _DTYPES[blob.dtype], "shape": list(blob.shape), "data_offsets": [end, end + blob.nbytes]
            }  # fmt: skip
            end += blob.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)  # the data begin where tiles may be loaded from
        parts = [len(text).to_bytes(8, "little"), text, *(blob.tobytes() for blob in self.blobs.values())]
        return Assembled(json.dumps(program, indent=1).encode(), b"".join(parts))

    def _op(self, kind: str, name: str, **fields: Any) -> None:
        self.ops.append({"kind": kind, "name": name, **fields})

    def _blob(self, name: str, values: NDArray[Any]) -> str:
        assert name not in self.blobs, f"two operations are called {name}"
        if values.nbytes % ALIGNMENT:
            values = values.reshape(-1)
            items = pack.pad_to(values.nbytes, ALIGNMENT) // values.itemsize
            values = np.concatenate([values, np.zeros(items - values.size, values.dtype)])
        self.blobs[name] = np.ascontiguousarray(values)
        return name

    def _norm(self, name: str, norm: Norm | None) -> dict[str, Any] | None:
        if norm is None:
            return None
        module = norm.module
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else 0
        weight: torch.Tensor = module.weight
        bias: torch.Tensor = module.bias
        if isinstance(module, nn.GroupNorm) and not module.affine:
            weight, bias = torch.ones(module.num_channels), torch.zeros(module.num_channels)
        return {
            "groups": groups,
            "layer": groups == 0,
            "epsilon": module.eps,
            "weight": self._blob(f"{name}.norm_weight", numpy_of(name, weight)),
            "bias": self._blob(f"{name}.norm_bias", numpy_of(name, bias)),
            "scale_row": norm.scale_row,
        }

    def _skip(self, name: str, skip: Skip | None, padded: int) -> dict[str, Any] | None:
        if skip is None:
            return None
        weight = numpy_of(name, skip.weight)
        packed = pack.pack_bf16(
            weight.reshape(*weight.shape[:2], 1), [value.channels for value in skip.sources], padded
        )
        return {"sources": [v.name for v in skip.sources], "weights": self._blob(f"{name}.skip_weights", packed)}

    def _quantised(
        self, name: str, weight: F32, channels: list[int], padded: int, scale: Scale, bias: F32
    ) -> dict[str, Any]:
        """Pack a convolution in int8; products of the input's zero point are taken off through the bias."""
        if scale.smooth:
            weight = weight * np.array(scale.smooth, np.float32)[:, None]
        scales = weight_scales(weight)
        levels = np.clip(np.rint(weight / scales[:, None, None]), -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
        multiplier = (scales * np.float32(scale.scale)).astype(np.float32)
        sums = levels.sum(axis=(1, 2), dtype=np.int64)
        shifted = bias.astype(np.float64) - scale.zero * multiplier.astype(np.float64) * sums
        self._blob(f"{name}.weights", pack.pack_int8(levels, channels, padded))
        self._blob(f"{name}.bias", pack.padded(shifted.astype(np.float32), padded))
        return {
            "zero_point": scale.zero,
            "inverse_scale": float(np.float32(1.0 / scale.scale)),
            "multiplier": self._blob(f"{name}.multiplier", pack.padded(multiplier, padded)),
        }

    def _check_conv(
        self, name: str, module: nn.Conv2d, sources: Sequence[Value], *, doubled: bool, far_padding: bool
    ) -> tuple[int, int]:
        """(kernel, stride) of a convolution that the engine has; ExportError for any other."""
        kernel, stride = module.kernel_size, module.stride
        large = kernel == (6, 6)
        padding = (0, 0) if far_padding else (2, 2) if large else tuple(size // 2 for size in kernel)
        plain = module.dilation == (1, 1) and module.groups == 1 and module.padding_mode == "zeros"
        shape = (large or kernel in ((1, 1), (3, 3))) and stride in ((1, 1), (2, 2)) and module.padding == padding
        odd = any(value.height % 2 or value.width % 2 for value in sources)
        even = not large if stride == (1, 1) else kernel != (1, 1) and not doubled and not odd
        if not (plain and shape and even and len(sources) <= MAX_SOURCES and (not doubled or kernel == (3, 3))):
            raise ExportError(
                f"layer {name}: found {module} over {len(sources)} maps of {sources[0].height} x {sources[0].width}, "
                f"expected a 1 x 1 or 3 x 3 convolution, stride 1 or (3 x 3, even sizes) 2, padded by half its size, or a "
                f"6 x 6 of stride 2 (even sizes) padded by 2, over at most {MAX_SOURCES} maps: the native engine has no "
                "other; leave native out of --backends"
            )
        return int(kernel[0]), int(stride[0])


def numpy_of(name: str, tensor: torch.Tensor) -> NDArray[np.float32]:
    """A weight as float32; a model with NaN or infinity in it is refused before it can run."""
    values: NDArray[np.float32] = tensor.detach().float().numpy()
    if not np.isfinite(values).all():
        raise ExportError(f"layer {name}: found NaN or infinity in its weights, expected finite ones; check the checkpoint")
    return values
