"""What is said of guides, whatever the model's family: their files, the timesteps of each, and what weights cannot tell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.bundle.limits import MAX_GUIDES
from engine.errors import ArgumentError
from export.beside import split_off

Range = tuple[int, int]


@dataclass(frozen=True)
class GuideOptions:
    """What a user may say of guides; None is not said.

    guide            the classifiers' files; beside adapters one, which they adapt
    guide_adapter    an adapter's file for each expert
    guide_timesteps  (low, high), both included, of each classifier or adapter, from the clean end
    guide_scale      that the bundle records
    guide_heads, guide_head_channels   of the classifiers, one of the two
    guide_depth      residual blocks of a level
    """

    guide: tuple[Path, ...] | None = None
    guide_adapter: tuple[Path, ...] | None = None
    guide_timesteps: tuple[Range, ...] | None = None
    guide_scale: float | None = None
    guide_heads: int | None = None
    guide_head_channels: int | None = None
    guide_depth: int | None = None

    @property
    def served(self) -> tuple[Path, ...]:
        """The files of which each makes a guide of its own."""
        return self.guide_adapter or self.guide or ()


def split(options: Mapping[str, Any]) -> tuple[GuideOptions, dict[str, Any]]:
    """What was said of the guides, and the rest; ArgumentError for options without a guide, and for files too many."""
    said, others = split_off(GuideOptions, options, "a classifier's file")
    if said.guide_adapter and said.guide and len(said.guide) > 1:
        raise ArgumentError(
            f"--guide: found {len(said.guide)} files beside --guide-adapter, expected one, the classifier that the adapters "
            f"belong to; give --guide {shlex.quote(str(said.guide[0]))} alone"
        )
    if len(said.served) > MAX_GUIDES:
        raise ArgumentError(f"--guide: found {len(said.served)} guides, expected at most {MAX_GUIDES}; leave some out")
    return said, others


def equal_ranges(T: int, count: int) -> tuple[Range, ...]:
    """T timesteps in equal ranges from the clean end; both ends included, so that neighbours share a boundary."""
    edges = [round(i * T / count) for i in range(count + 1)]
    return tuple((low, min(high, T - 1)) for low, high in pairwise(edges))


def ranges_of(said: GuideOptions, T: int) -> tuple[Range, ...]:
    """The timesteps of each guide, of T: all of one, equal ranges of adapters, else what was said.

    ArgumentError where that is not a range for each guide, from the clean end without gap or overlap; a boundary that two
    share is none.
    """
    files, given = said.served, said.guide_timesteps
    if given is None and (said.guide_adapter or len(files) == 1):
        return equal_ranges(T, len(files))
    if given is None or len(given) != len(files):
        option = "adapter" if said.guide_adapter else "guide"
        raise ArgumentError(
            f"--guide-timesteps: found {len(given or ()) or 'none'} for {len(files)} {option}{'s' * (len(files) > 1)}, "
            f"expected a range for each; give {_spelled(said, files, _disjoint(T, len(files)))}"
        )
    for index, (low, high) in enumerate(given):
        expected = _expected(given, index, T)
        if expected is not None:
            raise ArgumentError(
                f"--guide-timesteps: found {low} {high} for {files[index]}, expected {expected}; give "
                f"{_mended(said, given, T)}"
            )
    return given


def _expected(ranges: Sequence[Range], index: int, T: int) -> str | None:
    """What a range should have been; None for one that is right."""
    low, high = ranges[index]
    before = ranges[index - 1] if index else None
    if not 0 <= low <= high < T:
        return f"two of the model's timesteps 0 to {T - 1}, the lower one first"
    if before is None and low != 0:
        return "0 as the first timestep of the first: they are given from the clean end"
    if before is not None and (low - before[1] not in (0, 1) or low <= before[0] or high <= before[1]):
        return f"{before[1] + 1} as the first timestep, right behind {before[0]} {before[1]}: no gap, no overlap"
    if index == len(ranges) - 1 and high != T - 1:
        return f"{T - 1}, the model's last timestep, as that of the last"
    return None


def _mended(said: GuideOptions, given: Sequence[Range], T: int) -> str:
    """The options with the nearest ranges that are right: sorted, the ends kept; equal ones where that leaves one empty."""
    order = sorted(range(len(given)), key=lambda index: given[index])
    ends = [given[index][1] for index in order[:-1]] + [T - 1]
    ranges = tuple(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))
    if any(not 0 <= low <= high < T for low, high in ranges):
        ranges = _disjoint(T, len(given))
    return _spelled(said, [said.served[index] for index in order], ranges)


def _disjoint(T: int, count: int) -> tuple[Range, ...]:
    """Equal ranges that share no boundary."""
    lows = [low for low, _ in equal_ranges(T, count)]
    return tuple((low, after - 1) for low, after in pairwise([*lows, T]))


def _spelled(said: GuideOptions, files: Sequence[Path], ranges: Sequence[Range]) -> str:
    """The options as a terminal takes them."""
    option, base = ("--guide-adapter", said.guide) if said.guide_adapter else ("--guide", None)
    words = [f"--guide {shlex.quote(str(base[0]))}"] if base else []
    words += [
        f"{option} {shlex.quote(str(file))} --guide-timesteps {low} {high}"
        for file, (low, high) in zip(files, ranges, strict=True)
    ]
    return " ".join(words)
