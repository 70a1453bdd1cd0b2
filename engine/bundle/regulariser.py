"""The regulariser: a second, unconditional network with rows of its own in the step table (`pipeline.regulariser`), and
where it comes in unless a caller says otherwise (`regularise`).

    rows        once a set of timesteps: its own table; null of a network that is told no timestep
    step        once a row that is its own: x and its row to `e` and perhaps `variance`, of the state's shape. It is fed
                nothing else
    prediction  what it predicts, which may be something else than the pipeline's own network does

Both networks are of one schedule. A state that lies around a centre has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from engine.bundle.fields import Fields
from engine.bundle.guides import parse_interval
from engine.bundle.schema import read
from engine.solver.regulariser import OFF, REGULARISE

if TYPE_CHECKING:
    from engine.bundle.pipeline import CallSpec, PipelineSpec


@dataclass(frozen=True)
class RegulariserSpec:
    """The second network."""

    rows: CallSpec | None
    step: CallSpec
    prediction: str

    @property
    def learns_variance(self) -> bool:
        """Whether it has a second output, which variance "learned_range" reads in the steps that it takes."""
        return "variance" in self.step.outputs.values()


@dataclass(frozen=True)
class RegulariseDefaults:
    """The options of the regulariser that apply where a caller names none; `build_step_table` says what each of them is."""

    mode: Annotated[str, Fields.choice, REGULARISE]
    interval: Annotated[tuple[int, int], parse_interval] | None

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of `Sampler.sample`."""
        return {"regularise": self.mode, "regularise_interval": self.interval}


def parse_regularise(top: Fields, pipeline: PipelineSpec, T: int) -> RegulariseDefaults | None:
    """The field `regularise`, which is there where `pipeline.regulariser` is."""
    there = pipeline.regulariser is not None
    if "regularise" not in top or top.take_null("regularise"):
        if there:
            top.take("regularise", "how the regulariser of the pipeline is used: an object of mode and interval")
            top.refuse("regularise", "an object of mode and interval, as the pipeline has a regulariser")
        return None
    fields = top.object("regularise")
    found = read(RegulariseDefaults, fields)
    if not there:
        top.refuse("regularise", "null, as the pipeline has no regulariser")
    if found.interval is not None and found.mode == OFF:
        fields.refuse("interval", f"null, as the mode is {OFF!r}")
    if found.interval is not None and found.interval[1] >= T:
        fields.refuse("interval", f"two timesteps of 0 .. {T - 1}")
    return found
