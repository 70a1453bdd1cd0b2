"""What was trained, and from which file? The parts of a manifest that describe the model, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.bundle.fields import SHA256, Fields, refuse
from engine.solver.schedule import SPACINGS
from engine.solver.table import METHODS

UNCONDITIONAL_ROLES = ("timestep_table", "denoiser")
CONDITIONAL_ROLES = ("vae_encoder", "vae_decoder", *UNCONDITIONAL_ROLES)
HEXADECIMAL = "a SHA-256 of 64 lower-case hexadecimal digits"


@dataclass(frozen=True)
class Model:
    """What was trained. Unconditional: formulation, z_dim and vae are None, z_conditioned False."""

    formulation: int | None
    image_size: int
    channels: int
    z_dim: int | None
    z_conditioned: bool
    row_width: int
    unet: dict[str, Any]
    vae: dict[str, Any] | None

    @property
    def conditional(self) -> bool:
        """Whether the denoiser is conditioned on a VAE reconstruction."""
        return self.formulation is not None


@dataclass(frozen=True)
class ScheduleSpec:
    """The recipe of the betas that the model was trained with."""

    recipe: str
    beta_1: float
    beta_T: float
    T: int


@dataclass(frozen=True)
class Defaults:
    """The sampling options that a caller gets who names none."""

    steps: int
    method: str
    spacing: str | None
    t_start: int | None
    eta: float
    temperature: float
    guidance: float


@dataclass(frozen=True)
class Source:
    """Which checkpoint the bundle was built from."""

    file: str
    sha256: str
    weights: str
    vae_file: str | None
    vae_sha256: str | None


def parse_model(fields: Fields) -> Model:
    formulation = _nullable_integer(fields, "formulation", 1, 2)
    model = Model(
        formulation=formulation,
        image_size=fields.integer("image_size", 1, 4096),
        channels=fields.integer("channels", 1, 64),
        z_dim=_nullable_integer(fields, "z_dim", 1, 2**20),
        z_conditioned=fields.boolean("z_conditioned"),
        row_width=fields.integer("row_width", 1, 2**24),
        unet=fields.free("unet"),
        vae=None if fields.is_null("vae") else fields.free("vae"),
    )
    fields.take("vae", "an object or null")
    if model.conditional:
        for key in ("z_dim", "vae"):
            if fields.is_null(key):
                fields.refuse(key, f"a value, since model.formulation is {formulation}")
    else:
        for key, value in (
            ("z_dim", model.z_dim),
            ("vae", model.vae),
            ("z_conditioned", model.z_conditioned),
        ):
            if value not in (None, False):
                fields.refuse(key, "nothing of a VAE, since model.formulation is null (unconditional)")
    fields.done()
    return model


def parse_schedule(fields: Fields) -> ScheduleSpec:
    schedule = ScheduleSpec(
        recipe=fields.choice("recipe", ("linear",)),
        beta_1=fields.number("beta_1", 1e-12, 0.999999),
        beta_T=fields.number("beta_T", 1e-12, 0.999999),
        T=fields.integer("T", 1, 1_000_000),
    )
    if schedule.beta_T < schedule.beta_1:
        fields.refuse("beta_T", f"at least schedule.beta_1 = {schedule.beta_1:g}")
    fields.done()
    return schedule


def parse_defaults(fields: Fields, T: int) -> Defaults:
    defaults = Defaults(
        steps=fields.integer("steps", 1, T),
        method=fields.choice("method", tuple(METHODS)),
        spacing=None if fields.is_null("spacing") else fields.choice("spacing", tuple(SPACINGS)),
        t_start=_nullable_integer(fields, "t_start", 0, T - 1),
        eta=fields.number("eta", 0.0, 1.0),
        temperature=fields.number("temperature", 0.0, 100.0),
        guidance=fields.number("guidance", -100.0, 100.0),
    )
    fields.take("spacing", "a spacing or null")
    fields.done()
    return defaults


def parse_source(fields: Fields) -> Source:
    has_vae = not fields.is_null("vae_file")
    source = Source(
        file=fields.text("file"),
        sha256=fields.matching("sha256", SHA256, HEXADECIMAL),
        weights=fields.choice("weights", ("ema", "online")),
        vae_file=fields.text("vae_file") if has_vae else None,
        vae_sha256=fields.matching("vae_sha256", SHA256, HEXADECIMAL) if has_vae else None,
    )
    fields.take("vae_file", "a file name or null")
    if fields.take("vae_sha256", f"{HEXADECIMAL}, or null") is not None and not has_vae:
        fields.refuse("vae_sha256", "null, since source.vae_file is null")
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
