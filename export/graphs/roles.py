"""Which graphs does a bundle hold, and what goes in and comes out of each?

Everything that depends on the timestep alone is in `timestep_table`, so that no call of `denoiser` repeats it: neither
graph holds a weight of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from export.models.unet import UNet, sinusoid
from export.models.vae import VAE

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Tensor:
    """One input or output. A text in `shape` is a free dimension; `range` None means unbounded."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    range: tuple[float, float] | None = None

    def as_manifest(self) -> dict[str, object]:
        """The entry of this tensor in manifest.json."""
        limits = "unbounded" if self.range is None else list(self.range)
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "range": limits}


@dataclass(frozen=True)
class Role:
    """One graph: its name, the torch module that defines it, its signature, and "f32" or "fp16" for its weights."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precision: str = "f32"


class EncoderGraph(nn.Module):
    """image [N, 3, H, W] in [0, 1] -> mu, logvar [N, z_dim] of q(z | x)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.enc = vae.enc

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu, logvar = self.enc(image)
        return mu, logvar


class DecoderGraph(nn.Module):
    """z [N, z_dim] -> image [N, 3, H, W] in [0, 1]."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.dec = vae.dec

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.dec(z)
        return image


class TimestepTable(nn.Module):
    """timesteps int64 [S] (and z [N, z_dim]) -> the embedding rows of every residual block, [S, R] or [S, N, R].

    The sinusoids of all T timesteps are a stored table: sine and cosine of angles up to T differ between runtimes by more
    than the parity bound. The projections of all blocks are one matrix.
    """

    def __init__(self, unet: UNet, T: int) -> None:
        super().__init__()
        spec = unet.spec
        self.sinusoids = nn.Buffer(sinusoid(torch.arange(T), spec.model_channels, spec.layout))
        self.time_mlp = unet.time_mlp
        self.z_mlp = unet.z_mlp
        self.z_dim = spec.z_dim or 0
        blocks = [stage.res.emb for stage in unet.stages()]
        self.weight = nn.Parameter(torch.cat([block.weight for block in blocks]), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([block.bias for block in blocks]), requires_grad=False)

    def forward(self, timesteps: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        emb = self.time_mlp(self.sinusoids.index_select(0, timesteps))
        if self.z_mlp is not None and z is not None:
            emb = emb[:, None, :] + self.z_mlp(z)[None, :, :]
        rows = F.linear(F.silu(emb).to(self.weight.dtype), self.weight, self.bias)
        return rows.float()  # like the cast above, for a matrix in half (export/precision.py); nothing in float32

    def half_projection(self) -> None:
        """Turn the blocks' projections into half."""
        self.weight.data, self.bias.data = self.weight.half(), self.bias.half()


class Denoiser(nn.Module):
    """x, (cond,) row -> eps: the UNet without its embedding."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet


class ConditionalDenoiser(Denoiser):
    """cond in [-1, 1] is the VAE's reconstruction, beside x."""

    def forward(self, x: torch.Tensor, cond: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.unet.denoise(x, cond, row)


class UnconditionalDenoiser(Denoiser):
    """Without a first stage."""

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.unet.denoise(x, None, row)


def roles(unet: UNet, vae: VAE | None, T: int) -> dict[str, Role]:
    """The graphs of a bundle by name, in the order in which sampling uses them."""
    spec = unet.spec
    image = ("batch", 3, spec.image_size, spec.image_size)
    result: list[Role] = []
    if vae is not None:
        z = Tensor("z", ("batch", vae.spec.z_dim))
        pixels = Tensor("image", image, range=(0.0, 1.0))
        moments = tuple(Tensor(name, z.shape) for name in ("mu", "logvar"))
        result.append(Role("vae_encoder", EncoderGraph(vae), (pixels,), moments))
        result.append(Role("vae_decoder", DecoderGraph(vae), (z,), (pixels,)))
    by_z = (Tensor("z", ("batch", spec.z_dim)),) if spec.z_dim is not None else ()
    rows = ("steps", "batch", unet.row_width) if by_z else ("steps", unet.row_width)
    steps = Tensor("timesteps", ("steps",), "int64", (0.0, T - 1.0))
    result.append(Role("timestep_table", TimestepTable(unet, T), (steps, *by_z), (Tensor("rows", rows),)))
    row = Tensor("row", ("batch" if by_z else 1, unet.row_width))
    cond = (Tensor("cond", image, range=(-1.0, 1.0)),) if spec.conditional else ()
    module = ConditionalDenoiser(unet) if cond else UnconditionalDenoiser(unet)
    result.append(Role("denoiser", module, (Tensor("x", image), *cond, row), (Tensor("eps", image),)))
    return {role.name: role for role in result}


def example(role: Role, batch: int, steps: int, seed: int, table: TimestepTable | None = None) -> Inputs:
    """Random inputs of the kind that sampling meets: timesteps over the whole range, unit noise, values within `range`.

    `table` makes the denoiser's rows realistic: those of one timestep per seed.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes: Mapping[str, int] = {"batch": batch, "steps": steps}
    inputs: Inputs = {}
    for tensor in role.inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
        if tensor.dtype == "int64":
            last = int(tensor.range[1]) if tensor.range else 0
            inputs[tensor.name] = torch.linspace(last, 0 if steps > 1 else last, steps).round().long()
        elif tensor.name == "row" and table is not None:
            inputs["row"] = _row(table, shape[0], seed, generator)
        elif tensor.range is not None:
            low, high = tensor.range
            inputs[tensor.name] = low + (high - low) * torch.rand(shape, generator=generator)
        else:
            inputs[tensor.name] = torch.randn(shape, generator=generator)
    return inputs


def _row(table: TimestepTable, batch: int, seed: int, generator: torch.Generator) -> torch.Tensor:
    last = len(table.sinusoids) - 1
    timestep = torch.tensor([(last, last // 2, 0)[seed % 3]])
    if table.z_mlp is None:
        return table(timestep)
    z = torch.randn((batch, table.z_dim), generator=generator)
    return table(timestep, z)[0]
