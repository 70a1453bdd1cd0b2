"""Half variants of graphs, layer by layer in torch, before they are exported.

Convolutions and matrix products have float16 weights and operands. What is sensitive stays in float32: the statistics of
norms and the SiLU behind them, softmax, GELU, the time embedding, the layer that writes the output; of latent diffusion the
layers that begin a residual stream, and the sums along it. So do inputs and outputs, so that a half graph stands in for the
float32 one. The casts are nodes of the graph: runtimes ignore `stash_type` of GroupNormalization, and a converter that runs
after the export cannot know which layers matter.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from engine.errors import ArgumentError, ExportError, did_you_mean
from export.graphs.roles import Role
from export.models.graphs import TimestepTable

BOUND = 2e-3  # largest relative error of a half graph against float32 torch
MATRIX_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
SENSITIVE = (nn.GroupNorm, nn.LayerNorm, nn.GELU)
# The layer that writes a graph's output: what it rounds off is in the image, with nothing behind it to even it out.
OUTPUT_LAYERS = (
    "unet.out_conv", "enc.mu", "enc.logvar", "dec.last_conv",
    "unet.out.2", "encoder.conv_out", "quant_conv", "decoder.conv_out", "projection",  # of latent diffusion
)  # fmt: skip
# Of latent diffusion's deep networks. What a layer rounds off that begins a residual stream, or takes it to the next level
# without a norm (of an encoder that runs once), is in all that comes. What the others add to it is half, their sum is not:
# rounded at each addition, golden models came to 3.5e-3.
STREAM = re.compile(
    r"unet\.input_blocks\.0\.0|encoder\.conv_in|post_quant_conv|decoder\.conv_in|.*\.(proj_in|downsample\.conv)|"
    r"generator\.all_modules\.\d+"  # of generators: the first, those of the image's own path, and the one that writes x0
)
STREAM_ADDS = re.compile(
    r".*\.(out_layers\.[23]|skip_connection|proj_out|to_out(\.0)?|net\.2|op|upsample\.conv|block[_.]\d\.(conv2|nin_shortcut)|"
    r"Conv_[12])"
)


@dataclass(frozen=True)
class HalfOptions:
    """keep_float32: names of layers, or of modules with all their layers, that stay in float32 (`layer_names` has them
    all). turing: every matrix product in half, the output layers and the time embedding too; TensorRT has no other on
    SM75."""

    keep_float32: tuple[str, ...] = ()
    turing: bool = False


class HalfLayer(nn.Module):
    """A convolution or linear layer with weights, input and result in half; the result is then cast to `out`."""

    def __init__(self, layer: nn.Module, out: torch.dtype) -> None:
        super().__init__()
        self.layer = layer.half()
        self.out = out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x.half())
        return result.to(self.out)


class Float32Layer(nn.Module):
    """A module that computes in float32 whatever comes in; its result stays float32, or with `back` is what came in."""

    def __init__(self, layer: nn.Module, back: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.back = back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x.float())
        return result.to(x.dtype) if self.back else result


def half_roles(wanted: Mapping[str, Role], options: HalfOptions) -> list[Role]:
    """The half variants of these graphs: of all for `turing`, else of those that compute in half where half is asked for.

    The modules given are not touched. ArgumentError for a name in keep_float32 that no layer bears or that `turing`
    forbids, ExportError for a weight beyond the range of float16.
    """
    _check_names(wanted, options)
    return [half_role(role, options) for role in wanted.values() if options.turing or role.computes_in("fp16") == "fp16"]


def half_role(role: Role, options: HalfOptions) -> Role:
    """The half variant of one graph."""
    module = copy.deepcopy(role.module)
    _convert(module, "", role.name, options)
    if isinstance(module, TimestepTable):
        module.half_projection()
    return in_half(replace(role, module=module.eval().requires_grad_(False), precision="fp16"))


def in_half(role: Role) -> Role:
    """The same graph, computed in half where half is asked for."""
    return replace(role, compute={asked: found for asked, found in role.compute.items() if asked != "fp16"})


def layer_names(wanted: Mapping[str, Role]) -> dict[str, None]:
    """The names that keep_float32 takes, in the order of the network: layers that would be half, and what holds them."""
    names: dict[str, None] = {}
    for role in wanted.values():
        for name in _matrix_layers(role):
            parts = name.split(".")
            names |= dict.fromkeys(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return names


def _matrix_layers(role: Role) -> Iterator[str]:
    """The layers of a role that are half in the ordinary variant."""
    for name, module in role.module.named_modules():
        if isinstance(module, MATRIX_LAYERS) and not _is_exact(name):
            yield name


def _runs_elsewhere(name: str) -> bool:
    """Whether a layer belongs to the time embedding, which the timestep table runs, or to the context's keys and values: the
    denoiser only carries them along."""
    mlps = ("time_mlp.", "z_mlp.", "unet.time_mlp.", "unet.z_mlp.", "unet.time_embed.")
    return name.startswith(mlps) or name.endswith((".emb", ".emb_layers.1", ".attn2.to_k", ".attn2.to_v"))


def _is_exact(name: str) -> bool:
    """Whether a layer is in float32 but for Turing: it writes the output, is of the residual stream or embeds the time."""
    return name in OUTPUT_LAYERS or bool(STREAM.fullmatch(name)) or _runs_elsewhere(name)


def _check_names(wanted: Mapping[str, Role], options: HalfOptions) -> None:
    if options.turing and options.keep_float32:
        raise ArgumentError(
            f"--keep-float32: found {', '.join(options.keep_float32)} beside the Turing variant (--turing, or target sm75), "
            "expected none: on SM75 every matrix product must be in half; leave one of the two out"
        )
    known = layer_names(wanted)
    for name in options.keep_float32:
        if name not in known:
            raise ArgumentError(
                f"--keep-float32: found {name!r}, expected the name of a layer, or of a module that holds some, such as "
                f"{', '.join(list(known)[:3])}.{did_you_mean(name, known)}"
            )


def _convert(module: nn.Module, path: str, role: str, options: HalfOptions) -> None:
    """Replace the children of `module` in place, all the way down."""
    for name, child in list(module.named_children()):
        full = f"{path}.{name}" if path else name
        if path.startswith("unet") and _runs_elsewhere(full):
            continue
        if isinstance(child, MATRIX_LAYERS):
            setattr(module, name, _matrix_layer(child, full, role, options))
        elif isinstance(child, SENSITIVE):
            setattr(module, name, Float32Layer(child))
        elif isinstance(child, nn.Softmax):  # its result meets a half operand in the next matrix product
            setattr(module, name, Float32Layer(child, back=True))
        else:
            _convert(child, full, role, options)


def _matrix_layer(layer: nn.Module, name: str, role: str, options: HalfOptions) -> nn.Module:
    exact = _is_exact(name)
    kept = any(name == k or name.startswith(f"{k}.") for k in options.keep_float32)
    if kept or (exact and not options.turing):
        return Float32Layer(layer)
    for key, value in layer.named_parameters():
        if not torch.isfinite(value.half()).all():
            raise ExportError(
                f"graph {role}: found values up to {float(value.abs().max()):.3g} in {name}.{key}, expected the range of "
                f"float16, up to 65504; keep the layer with --keep-float32 {name}"
            )
    return HalfLayer(layer, torch.float32 if exact or STREAM_ADDS.fullmatch(name) else torch.float16)
