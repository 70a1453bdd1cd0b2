"""What was trained, and how it is sampled unless a caller says otherwise: schedule, defaults and source of a manifest."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bundle.fields import SHA256, Fields, refuse
from engine.bundle.files import HEXADECIMAL
from engine.bundle.limits import MAX_GUIDANCE, MAX_T, MAX_TEMPERATURE
from engine.solver.schedule import SPACINGS, Schedule
from engine.solver.table import METHODS

# Numbers of each recipe beside T, with their limits; "table" has betas instead.
RECIPES: dict[str, dict[str, tuple[float, float]]] = {
    "linear": {"start": (1e-12, 0.999999), "end": (1e-12, 0.999999)},
    "scaled_linear": {"start": (1e-12, 0.999999), "end": (1e-12, 0.999999)},
    "cosine": {"s": (0.0, 1.0), "max_beta": (1e-12, 0.999999)},
    "table": {},
}


@dataclass(frozen=True)
class ScheduleSpec:
    """The recipe of the betas that the model was trained with, or the betas themselves."""

    recipe: str
    T: int
    numbers: dict[str, float]
    betas: tuple[float, ...] | None

    def schedule(self) -> Schedule:
        """The schedule in float64."""
        return Schedule.from_recipe(self.recipe, self.T, betas=self.betas, **self.numbers)


@dataclass(frozen=True)
class Defaults:
    """The sampling options that apply where a caller names none."""

    steps: int
    method: str
    spacing: str | None
    t_start: int | None
    eta: float
    temperature: float
    guidance: float


@dataclass(frozen=True)
class Source:
    """The checkpoint that the bundle was built from, and the second one where there were two."""

    file: str
    sha256: str
    weights: str
    other_file: str | None
    other_sha256: str | None


def parse_schedule(fields: Fields) -> ScheduleSpec:
    """The field `schedule`."""
    recipe = fields.choice("recipe", tuple(RECIPES))
    T = fields.integer("T", 1, MAX_T)
    numbers = {key: fields.number(key, low, high) for key, (low, high) in RECIPES[recipe].items()}
    if numbers.get("end", 1.0) < numbers.get("start", 0.0):
        fields.refuse("end", f"at least schedule.start = {numbers['start']:g}")
    betas = _betas(fields, T) if recipe == "table" else None
    fields.done()
    return ScheduleSpec(recipe, T, numbers, betas)


def _betas(fields: Fields, T: int) -> tuple[float, ...]:
    expected = f"a list of T = {T} numbers between 0 and 1"
    betas = fields.items("betas", expected)
    if len(betas) != T or not all(type(beta) is float and 0 < beta < 1 for beta in betas):
        fields.refuse("betas", expected)
    return tuple(betas)


def parse_defaults(fields: Fields, T: int) -> Defaults:
    """The field `defaults`."""
    defaults = Defaults(
        steps=fields.integer("steps", 1, T),
        method=fields.choice("method", tuple(METHODS)),
        spacing=None if fields.is_null("spacing") else fields.choice("spacing", tuple(SPACINGS)),
        t_start=_nullable_integer(fields, "t_start", 0, T - 1),
        eta=fields.number("eta", 0.0, 1.0),
        temperature=fields.number("temperature", 0.0, MAX_TEMPERATURE),
        guidance=fields.number("guidance", -MAX_GUIDANCE, MAX_GUIDANCE),
    )
    fields.take("spacing", "a spacing or null")
    fields.done()
    return defaults


def parse_source(fields: Fields) -> Source:
    """The field `source`."""
    has_other = not fields.is_null("other_file")
    source = Source(
        file=fields.text("file"),
        sha256=fields.matching("sha256", SHA256, HEXADECIMAL),
        weights=fields.choice("weights", ("ema", "online")),
        other_file=fields.text("other_file") if has_other else None,
        other_sha256=fields.matching("other_sha256", SHA256, HEXADECIMAL) if has_other else None,
    )
    fields.take("other_file", "a file name or null")
    if fields.take("other_sha256", f"{HEXADECIMAL}, or null") is not None and not has_other:
        fields.refuse("other_sha256", "null, since source.other_file is null")
    fields.done()
    return source


def _nullable_integer(fields: Fields, key: str, low: int, high: int) -> int | None:
    expected = f"an integer in {low}..{high}, or null"
    value = fields.take(key, expected)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        refuse(fields.where, fields.name_of(key), value, expected)
    return int(value)
