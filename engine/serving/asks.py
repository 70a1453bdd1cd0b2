"""A request as checked samples, and the settings that clients ask for, settled once for all requests that repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from engine import resolve
from engine.augmentation import checked_level
from engine.bundle.directions import Edits
from engine.bundle.manifest import Manifest
from engine.deadline import Budget, check_alone
from engine.errors import ArgumentError
from engine.pipeline import table_of
from engine.stages import merged, recorded, starts_from_image
from engine.verbs import check_refines

KEPT_SETTINGS = 256  # settled settings that are remembered; a service sees a handful
Options: TypeAlias = "tuple[tuple[str, Any], ...]"  # of a verb of the Sampler, by name


@dataclass(frozen=True)
class Ask:
    """A checked request of n samples."""

    seeds: npt.NDArray[np.uint64]  # [n]
    options: tuple[Options, ...]  # one a sample: every option of its setting, or a budget and what may stand beside it
    budgets: tuple[Budget, ...]  # one a sample; empty without
    inputs: dict[str, npt.NDArray[Any]]  # those that the request has by the verb's names, [n, ...] each
    wanted: frozenset[str]  # the outputs that it is to be answered with
    verb: str = "sample"  # the Sampler's method
    edits: tuple[Edits, ...] = ()  # one a sample; empty without

    def __len__(self) -> int:
        return len(self.seeds)


class Settings:
    """What options mean for one bundle. max_steps: the most network calls of a request; cure: how a server raises it."""

    def __init__(self, manifest: Manifest, max_steps: int, cure: str) -> None:
        self.manifest, self.max_steps, self._cure = manifest, max_steps, cure
        self._schedule = manifest.schedule.schedule()
        self._settle = lru_cache(KEPT_SETTINGS)(self._settled)

    def settle(self, options: Options, has_image: bool = False) -> tuple[Options, Budget | None]:
        """A complete setting, or what stands beside a budget; checked as the Sampler would, ArgumentError otherwise.

        has_image: the request brings a picture that its chain may start from.
        """
        return self._settle(options, has_image)

    def _settled(self, options: Options, has_image: bool) -> tuple[Options, Budget | None]:
        given = dict(options)
        promise = (given.pop("budget_ms", None), given.pop("at_most", False), given.pop("anytime", False))
        budget = Budget.of(*promise)
        if budget is None:
            return self._complete(given, has_image), None
        check_alone(given)
        for fitted in self.manifest.fitted.settings if self.manifest.fitted is not None else ():
            self._complete({**given, "steps": fitted.steps}, has_image)  # any of them may be chosen
        return tuple((name, value) for name, value in given.items() if name != "setting"), budget

    def _complete(self, options: Mapping[str, Any], has_image: bool) -> Options:
        """Every option of the setting that is meant."""
        setting = resolve.setting_of(self.manifest, options, has_image=has_image)
        table = table_of(self.manifest, self._schedule, setting)
        if len(table) > self.max_steps:
            calls = f", {len(table)} calls of the network" if len(table) != setting.steps else ""
            raise ArgumentError(
                f"steps is {setting.steps}{calls}; this server takes 1 .. {self.max_steps}. Ask for fewer, or {self._cure}"
            )
        values = {name: getattr(setting, name) for name in resolve.SETTING_OPTIONS} | {"spacing": table.spacing}
        others = {name: value for name, value in options.items() if name not in values and name != "setting"}
        return tuple((values | others).items())


class StageSettings:
    """What options mean for a cascade's stage after the first, counted from 1; checked as the Cascade would.

    max_steps, cure: as for Settings.
    """

    def __init__(self, before: Manifest, after: Manifest, stage: int, max_steps: int, cure: str) -> None:
        self.manifest, self.stage = after, stage
        self._recorded, self._settings = recorded(before, after), Settings(after, max_steps, cure)

    def settle(self, own: Mapping[str, Any]) -> Options:
        """Those of a request, with what is recorded where it does not say; ArgumentError says which stage it is of."""
        try:
            return self._settled(own)
        except ArgumentError as error:
            raise ArgumentError(f"stage {self.stage}: {error}") from error

    def _settled(self, own: Mapping[str, Any]) -> Options:
        options = merged(self._recorded, dict(own))
        setting = {name: value for name, value in options.items() if name != "noise_level"}
        checked_level(self.manifest, options.get("noise_level"))
        starts = starts_from_image(self.manifest)
        settled, _ = self._settings.settle(tuple(setting.items()), has_image=starts)
        if starts:
            check_refines(self.manifest, dict(settled)["t_start"])
        return tuple(options.items())
