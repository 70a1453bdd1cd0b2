"""What is asked for, once it is checked? Seeds, a setting and the arrays that a caller gave, for N samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.chunk import Values
from engine.result import F32, Setting


@dataclass(frozen=True)
class Request:
    """A checked request over N samples; None where the engine draws or derives the array itself."""

    seeds: npt.NDArray[np.uint64]
    setting: Setting
    z: Values | None = None  # [N, z_dim]
    cond: F32 | None = None  # [N, C, H, W] in [-1, 1]: a given condition instead of the VAE's reconstruction
    image: F32 | None = None  # [N, C, H, W] in [-1, 1]: a given image to start from
    start_noise: Values | None = None  # x_T, [N or 1, C, H, W]
    noise: F32 | None = None  # [S, N or 1, C, H, W]
    noised_image: bool = False  # without t_start, start from the image noised to T - 1

    def part(self, begin: int, end: int) -> Request:
        """Samples begin..end of this request; arrays shared by the batch stay shared."""
        n = len(self.seeds)

        def cut(array: Values | None) -> Values | None:
            return array if array is None or len(array) != n else array[begin:end]

        noise = self.noise
        if noise is not None and noise.shape[1] == n:
            noise = noise[:, begin:end]
        return replace(
            self,
            seeds=self.seeds[begin:end],
            z=cut(self.z),
            cond=cut(self.cond),
            image=cut(self.image),
            start_noise=cut(self.start_noise),
            noise=noise,
        )
