"""What was trained, and how it is sampled unless a caller says otherwise: schedule, defaults and source of a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from engine.argument_checks import Numbers
from engine.bundle.fields import HEXADECIMAL, Fields
from engine.bundle.limits import MAX_T
from engine.bundle.schema import read, take
from engine.solver.schedule import Schedule
from engine.solver.table import METHODS
from engine.solver.timesteps import LEAST_RHO, MOST_RHO, RHO, SPACINGS

# Numbers of each recipe beside T, with their limits; "table" has betas instead.
BETA = (1e-12, 0.999999)
RECIPES: dict[str, dict[str, tuple[float, float]]] = {
    "linear": {"start": BETA, "end": BETA},
    "scaled_linear": {"start": BETA, "end": BETA},
    "cosine": {"s": (0.0, 1.0), "max_beta": BETA},
    "table": {},
}


@dataclass(frozen=True)
class ScheduleSpec:
    """The recipe of the betas that the model was trained with, or the betas themselves."""

    recipe: Annotated[str, Fields.choice, tuple(RECIPES)]
    T: Annotated[int, Fields.integer, 1, MAX_T]
    numbers: dict[str, float]
    betas: tuple[float, ...] | None

    def schedule(self) -> Schedule:
        """The schedule in float64."""
        return Schedule.from_recipe(self.recipe, self.T, betas=self.betas, **self.numbers)


@dataclass(frozen=True)
class Defaults:
    """The sampling options that apply where a caller names none; `build_step_table` says what each of them is."""

    steps: Annotated[int, Fields.integer, 1, "T"]
    timesteps: Annotated[tuple[int, ...], Fields.falling, 0, "last"] | None
    spacing: Annotated[str, Fields.choice, tuple(SPACINGS)] | None
    rho: Annotated[float, Fields.number, LEAST_RHO, MOST_RHO]
    method: Annotated[str, Fields.choice, tuple(METHODS)]
    eta: Annotated[Numbers, Fields.numbers, 0.0, 1.0]
    t_start: Annotated[int, Fields.integer_or_null, 0, "last"] | None
    temperature: Annotated[float, Fields.number, 0.0, 100.0]
    noise_scale: Annotated[Numbers, Fields.numbers, 0.0, 100.0]
    eps_scale: Annotated[Numbers, Fields.numbers, 0.0, 100.0]
    guidance: Annotated[float, Fields.number, -100.0, 100.0]


# Of a chain that nothing was said about, beside its steps and where they lie.
PLAIN: dict[str, Any] = {
    "rho": RHO, "method": "ddim", "eta": 0.0, "t_start": None, "temperature": 1.0, "noise_scale": 1.0, "eps_scale": 1.0,
    "guidance": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The checkpoint that the bundle was built from, and the second one where there were two."""

    file: Annotated[str, Fields.text]
    sha256: Annotated[str, Fields.sha256]
    weights: Annotated[str, Fields.choice, ("ema", "online")]
    other_file: Annotated[str, Fields.text] | None
    other_sha256: Annotated[str, Fields.sha256] | None


def parse_schedule(fields: Fields) -> ScheduleSpec:
    """The field `schedule`."""
    found = take(ScheduleSpec, fields)
    recipe, T = found["recipe"], found["T"]
    numbers = {key: fields.number(key, low, high) for key, (low, high) in RECIPES[recipe].items()}
    if numbers.get("end", 1.0) < numbers.get("start", 0.0):
        fields.refuse("end", f"at least schedule.start = {numbers['start']:g}")
    betas = _betas(fields, T) if recipe == "table" else None
    fields.done()
    return ScheduleSpec(**found, numbers=numbers, betas=betas)


def _betas(fields: Fields, T: int) -> tuple[float, ...]:
    expected = f"a list of T = {T} numbers between 0 and 1"
    betas = fields.items("betas", expected)
    if len(betas) != T or not all(type(beta) is float and 0 < beta < 1 for beta in betas):
        fields.refuse("betas", expected)
    return tuple(betas)


def parse_source(fields: Fields, key: str) -> Source:
    """The field `source`."""
    entry = fields.object(key)
    source = read(Source, entry)
    if (source.other_file is None) != (source.other_sha256 is None):
        entry.refuse("other_sha256", HEXADECIMAL if source.other_file else f"null, since {key}.other_file is null")
    return source
