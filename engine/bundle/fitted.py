"""Settings fitted to a bundle: one for a count of network calls each, with the record of how they were found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from engine.bundle.fields import Fields, refuse
from engine.bundle.schema import read, take
from engine.bundle.training import PLAIN, Defaults

if TYPE_CHECKING:
    from engine.bundle.manifest import Manifest


@dataclass(frozen=True)
class Fitted:
    """What `diffusevae fit-setting` wrote.

    of        SHA-256 of the step's graph that the settings were fitted on
    settings  the best first, each with its timesteps listed, the counts all different
    record    seeds, objective, scores, date, engine; not read by the engine
    """

    of: Annotated[str, Fields.sha256]
    settings: tuple[Defaults, ...]
    record: Annotated[dict[str, Any], Fields.free]

    def get(self, steps: int) -> Defaults | None:
        """The setting of so many calls."""
        return next((setting for setting in self.settings if setting.steps == steps), None)


def parse_fitted(top: Fields, T: int) -> Fitted | None:
    """The field `fitted`, which may be null."""
    if top.take_null("fitted"):
        return None
    fields = top.object("fitted")
    taken = take(Fitted, fields)
    settings: dict[int, Defaults] = {}
    for entry in fields.objects("settings", "a list of settings, one for each count of calls"):
        setting = read(Defaults, entry, T=T, last=T - 1)
        if setting.timesteps is None or len(setting.timesteps) != setting.steps:
            entry.refuse("timesteps", f"a list of {setting.steps}, as {entry.name_of('steps')} says")
        if setting.steps in settings:
            entry.refuse("steps", "another count for each setting")
        settings[setting.steps] = setting
    fields.done()
    return Fitted(settings=tuple(settings.values()), **taken)


def check_fitted(manifest: Manifest, where: str) -> None:
    """Refuse settings that were fitted on another network than the bundle's: they would mean nothing here."""
    if manifest.fitted is not None and manifest.fitted.of != step_digest(manifest):
        expected = f"{step_digest(manifest)}, the SHA-256 of the step's graph, on which settings are fitted"
        refuse(where, "fitted.of", manifest.fitted.of, expected)


def step_digest(manifest: Manifest) -> str:
    """The SHA-256 of the graph that a setting is fitted on."""
    return manifest.graphs[manifest.pipeline.step.graph].sha256


def as_options(setting: Defaults) -> dict[str, Any]:
    """The options of `Sampler.sample` that a setting of `fitted.settings` stands for."""
    return {"timesteps": setting.timesteps, **{name: getattr(setting, name) for name in PLAIN if name != "rho"}}


def as_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """A setting of `fitted.settings`, as JSON has it, of the options that `Sampler.sample` takes."""
    return {"steps": len(options["timesteps"]), "spacing": None, **PLAIN, **options}
