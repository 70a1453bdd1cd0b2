"""The networks of a VAE and a UNet as graphs of a bundle.

Everything that depends on the timestep alone is in `TimestepTable`, so that no call of `Denoiser` repeats it: neither graph
holds a weight of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from export.models.unet import UNet
from export.models.vae import VAE


class EncoderGraph(nn.Module):
    """image [N, C, H, W] in [0, 1] -> mu, logvar [N, z_dim] of q(z | x)."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.enc = vae.enc
        self.spec = vae.spec

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu, logvar = self.enc(image)
        return mu, logvar


class DecoderGraph(nn.Module):
    """z [N, z_dim] -> image [N, C, H, W] in [-1, 1], the range that the refiner was trained on."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.dec = vae.dec
        self.spec = vae.spec

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = 2 * self.dec(z) - 1
        return image


class TimestepTable(nn.Module):
    """timesteps int64 [S] (and z [N, z_dim]) -> the embedding rows of every residual block, [S, R] or [S, N, R].

    The sinusoids of all T timesteps are a stored table: sine and cosine of angles up to T differ between runtimes by more
    than the parity bound. The projections of all blocks are one matrix.

    sinusoids: [T, width]; blocks: each block's projection of the embedding, in the order of the rows; z_mlp: what makes of
    z what is added to the embedding, an nn.Identity where z is that already.
    """

    def __init__(
        self, sinusoids: torch.Tensor, time_mlp: nn.Module, blocks: Sequence[nn.Linear], z_mlp: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.sinusoids = nn.Buffer(sinusoids)
        self.time_mlp = time_mlp
        self.z_mlp = z_mlp
        self.z_dim: int = 0 if z_mlp is None else _inputs(z_mlp, default=blocks[0].in_features)
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


def _inputs(mlp: nn.Module, default: int) -> int:
    """What the first layer of a network takes; the default where it has none."""
    return next((weight.shape[1] for weight in mlp.parameters()), default)


class Denoiser(nn.Module):
    """x, row -> what the network predicts of the noise: the UNet without its embedding."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.unet.denoise(x, None, row)


class ConditionedDenoiser(nn.Module):
    """The same with an image in [-1, 1] beside x."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, cond: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.unet.denoise(x, cond, row)
