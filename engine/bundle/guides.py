"""Guides: graphs whose gradient the loop adds to its steps (`pipeline.guides`), and how much of it unless a caller says
otherwise (`guide`).

    rows       once a set of timesteps, as the network's own: the guide's own table; null of one that knows no timestep
    step       once a row that it guides: x, its row and values to `g`, of the state's shape, and `entropy`, one a sample
    timesteps  [low, high], both included, that it serves: of several guides the first that serves a row's timestep
    classes    of its classifier: what `entropy` is of

Guides are listed from the clean end, and serve every timestep of the schedule between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from engine.bundle.fields import Fields
from engine.bundle.limits import MAX_GUIDE_SCALE
from engine.bundle.schema import read
from engine.solver.guides import MODES

if TYPE_CHECKING:
    from engine.bundle.pipeline import CallSpec, PipelineSpec

G, ENTROPY = "g", "entropy"  # what a guide gives


@dataclass(frozen=True)
class GuideSpec:
    """One guide."""

    rows: CallSpec | None
    step: CallSpec
    timesteps: tuple[int, int]
    classes: int

    def serves(self, timestep: int) -> bool:
        """Whether a timestep is within its own."""
        return self.timesteps[0] <= timestep <= self.timesteps[1]


def guide_of(guides: tuple[GuideSpec, ...], timestep: int) -> int:
    """The index of the guide of a timestep: the first that serves it, so that a boundary belongs to the lower one."""
    return next(index for index, guide in enumerate(guides) if guide.serves(timestep))


def parse_interval(fields: Fields, key: str) -> tuple[int, int]:
    """Two timesteps, the lower one first, where null may do as well."""
    expected = "two timesteps, [low, high], the lower one first"
    found = fields.items(key, expected)
    if len(found) != 2 or any(type(one) is not int for one in found) or not 0 <= found[0] <= found[1]:
        fields.refuse(key, expected)
    return found[0], found[1]


@dataclass(frozen=True)
class GuideDefaults:
    """The options of the guides that apply where a caller names none; `build_step_table` says what each of them is."""

    scale: Annotated[float, Fields.number, -MAX_GUIDE_SCALE, MAX_GUIDE_SCALE]
    mode: Annotated[str, Fields.choice, MODES]
    interval: Annotated[tuple[int, int], parse_interval] | None

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of `Sampler.sample`."""
        return {"guide_scale": self.scale, "guide_mode": self.mode, "guide_interval": self.interval}


def parse_guide(top: Fields, pipeline: PipelineSpec, T: int) -> GuideDefaults | None:
    """The field `guide`, which is there where `pipeline.guides` is; each held against the T timesteps of the schedule."""
    check_coverage(top.object("pipeline"), pipeline.guides, T)
    if "guide" not in top or top.take_null("guide"):
        if pipeline.guides:
            top.take("guide", "how the guides of the pipeline are used: an object of scale, mode and interval")
            top.refuse("guide", "an object of scale, mode and interval, as the pipeline has guides")
        return None
    fields = top.object("guide")
    found = read(GuideDefaults, fields)
    if not pipeline.guides:
        top.refuse("guide", "null, as the pipeline has no guides")
    if found.interval is not None and found.interval[1] >= T:
        fields.refuse("interval", f"two timesteps of 0 .. {T - 1}")
    if found.mode == "entropy" and not all(ENTROPY in guide.step.outputs.values() for guide in pipeline.guides):
        fields.refuse("mode", f"another mode, as not every guide gives {ENTROPY!r}")
    return found


def check_coverage(pipeline: Fields, guides: tuple[GuideSpec, ...], T: int) -> None:
    """Refuse timesteps that no guide serves."""
    if not guides:
        return
    entries = pipeline.objects("guides", "a list of guides")
    if guides[0].timesteps[0] != 0:
        entries[0].refuse("timesteps", "0 as the first timestep of the first guide: they are listed from the clean end")
    for entry, (before, after) in zip(entries[1:], pairwise(guides), strict=True):
        if not before.timesteps[0] < after.timesteps[0] <= before.timesteps[1] + 1:
            low, high = before.timesteps
            entry.refuse("timesteps", f"a first timestep of {low + 1} .. {high + 1}, without a gap to the guide before it")
        if after.timesteps[1] <= before.timesteps[1]:
            entry.refuse("timesteps", f"a last timestep above {before.timesteps[1]}, that of the guide before it")
    if guides[-1].timesteps[1] != T - 1:
        entries[-1].refuse("timesteps", f"{T - 1}, the schedule's last timestep, as that of the last guide")
