"""One point of the search: the timesteps of a chain and the numbers that go with them, and the points around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

NOISE_STEP, EPS_STEP = 0.08, 0.01  # of one move at stride 1
NOISE_RANGE, EPS_RANGE = (0.2, 1.3), (0.95, 1.08)


@dataclass(frozen=True)
class Candidate:
    """A setting as the search varies it.

    timesteps    falling; with `image` the first is where the chain joins the noised start image
    noise_scale  of the steps' noise, eps_scale of the network's eps
    guidance     what the settings are fitted for: it does not vary
    """

    timesteps: tuple[int, ...]
    image: bool
    method: str = "ddim"
    eta: float = 1.0
    noise_scale: float = 1.0
    eps_scale: float = 1.0
    guidance: float = 0.0

    @property
    def options(self) -> dict[str, Any]:
        """What `Sampler.sample` is called with."""
        found = asdict(self) | {"timesteps": list(self.timesteps)}
        return found | {"t_start": self.timesteps[0] if found.pop("image") else None}

    def moved(self, log_snr: F64, where: Sequence[int], share: float) -> Candidate | None:
        """With these timesteps moved by `share` of the gap to their neighbour, evenly in log SNR; None where nothing moves.

        share > 0 is towards the clean end. A move of several keeps the proportions between them.
        """
        levels = log_snr[list(self.timesteps)]
        after = np.append(levels[1:], log_snr[0])[where[-1]]
        # The start has no neighbour before it: it moves by the gap behind it, as the noisy end may be far away.
        before = levels[where[0] - 1] if where[0] else max(log_snr[-1], 2 * levels[0] - np.append(levels, log_snr[0])[1])
        edge = after if share > 0 else before
        moved = levels.copy()
        for index in where:
            moved[index] += abs(share) * (edge - levels[index])
        return self.at(nearest(log_snr, moved))

    def at(self, timesteps: Sequence[int]) -> Candidate | None:
        """The same with these timesteps; None where they are no chain, or the same one."""
        found = tuple(int(t) for t in timesteps)
        return replace(self, timesteps=found) if is_falling(found) and found != self.timesteps else None

    def scaled(self, name: str, step: float) -> Candidate | None:
        """With one of the two scales moved by `step` within its range; None where it cannot."""
        low, high = NOISE_RANGE if name == "noise_scale" else EPS_RANGE
        value = round(min(high, max(low, getattr(self, name) + step)), 4)
        return None if value == getattr(self, name) else replace(self, **{name: value})

    def neighbours(self, log_snr: F64, stride: float) -> Iterator[tuple[str, Candidate]]:
        """(name of the move, the candidate there), both ways of every parameter, at `stride` 1, 1/2, ..."""
        count = len(self.timesteps)
        first = 0 if self.image else 1  # from noise the first call is at the noise
        groups = [(f"t{index}", [index]) for index in range(first, count)]
        if count - first > 1:
            groups.append(("t", list(range(first, count))))
        for name, where in groups:
            for sign in (1.0, -1.0):
                if found := self.moved(log_snr, where, sign * stride / 2):
                    yield f"{name}{'+' if sign > 0 else '-'}", found
        noisy = self.eta > 0
        for name, step in (("noise_scale", NOISE_STEP), ("eps_scale", EPS_STEP))[0 if noisy else 1 :]:
            for sign in (-1.0, 1.0):
                if found := self.scaled(name, sign * stride * step):
                    yield f"{name}{'+' if sign > 0 else '-'}", found


def nearest(log_snr: F64, levels: F64) -> list[int]:
    """The timestep of the nearest log SNR for each level; log_snr falls from t = 0 to T - 1."""
    rising = log_snr[::-1]
    right = np.clip(np.searchsorted(rising, levels), 1, len(rising) - 1)
    left = right - (levels - rising[right - 1] < rising[right] - levels)
    return [len(rising) - 1 - int(index) for index in left]


def resampled(candidate: Candidate, log_snr: F64, count: int) -> Candidate | None:
    """The chain of another number of calls with the same density of timesteps in log SNR; None where they fall together."""
    levels = np.append(log_snr[list(candidate.timesteps)], log_snr[0])
    places = np.linspace(0, len(levels) - 1, count + 1)
    found = nearest(log_snr, np.interp(places, np.arange(len(levels)), levels)[:-1])
    return replace(candidate, timesteps=tuple(found)) if is_falling(found) else None


def is_falling(timesteps: Sequence[int]) -> bool:
    """Whether these are the timesteps of a chain."""
    return all(a > b for a, b in pairwise(timesteps))
