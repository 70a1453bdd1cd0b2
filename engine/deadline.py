"""Sampling within a budget of time: which fitted setting this machine can keep, and what became of the promise.

Times are those of the runs themselves, on this backend, in this precision, with these threads and this many samples: a run
of K calls takes about r + K s milliseconds, of which the medians of the last runs are known, and a machine with neighbours
now and then takes a multiple of that. The quantile of that multiple makes of the usual time one that is kept in 99 of 100
runs.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from time import perf_counter
from typing import Any

from engine import checks, resolve
from engine.argument_checks import check_number
from engine.bundle.training import Defaults
from engine.commands import command
from engine.errors import ArgumentError, DeadlineError
from engine.pipeline import Pipeline
from engine.request import FINISH, Request, Watch
from engine.result import Batch, Deadline, StepInfo, Timings
from engine.solver.regulariser import OFF

QUANTILE = 0.995  # of the last runs: with 512 a setting that is late once in 100 passes as one that is not in 1 window of 27
WINDOW = 512  # runs that are remembered
PROBES = 5  # runs of the fewest and of the most calls before the first promise


@dataclass(frozen=True)
class Budget:
    """What a caller asks for: milliseconds from call to images, and what to do where they do not suffice."""

    milliseconds: float
    at_most: bool = False
    anytime: bool = False

    @classmethod
    def of(cls, milliseconds: object, at_most: bool, anytime: bool) -> Budget | None:
        """None without a budget; ArgumentError for what is none."""
        if milliseconds is None:
            if at_most or anytime:
                raise ArgumentError(
                    f"{'at_most' if at_most else 'anytime'} is given without a budget; expected budget_ms beside it"
                )
            return None
        number = check_number("budget_ms", milliseconds, 0.0)
        if number == 0.0:
            raise ArgumentError("budget_ms is 0; expected milliseconds above 0")
        return cls(number, bool(at_most), bool(anytime))


def check_alone(options: Mapping[str, Any]) -> None:
    """Refuse a setting beside a budget, which chooses it, and a guide or a regulariser, which no fitted setting knows."""
    if options.get("guide_scale"):
        raise ArgumentError("budget_ms chooses a fitted setting, which knows no guide: leave guide_scale or the budget out.")
    if options.get("regularise") not in (None, OFF):
        raise ArgumentError(
            "budget_ms chooses a fitted setting, which knows no regulariser: leave regularise or the budget out."
        )
    others = [name for name in checks.REPLACES_RECORDED if options.get(name) is not None]
    if others or options.get("setting") == "plain":
        given = others[0] if others else "setting 'plain'"
        raise ArgumentError(f"budget_ms chooses the setting, but {given} is given: leave one of the two out.")


# Samples, lanes, and what else makes a call longer: guidance_interval and quantize_denoised.
Size = tuple[int, int, "tuple[int, int] | None", bool]


@dataclass
class RunTimes:
    """The last runs of one size."""

    fixed: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # r
    call: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # s
    multiple: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # of r + K s that a run took
    probes: int = 0  # runs that are still to be made before the first promise
    _lock: Lock = field(default_factory=Lock)  # clones book their runs in threads of their own
    # Both found once for each run that is booked: a request asks for them once for every fitted setting.
    _usual: tuple[float, float] = (0.0, 0.0)  # medians of r and s
    _quantile: float = 0.0  # of the multiple

    def add(self, calls: int, timings: Timings) -> None:
        """Book a run of so many calls."""
        loop = timings.network_ms + timings.update_ms
        with self._lock:
            self.fixed.append(timings.total_ms - loop)
            self.call.append(loop / calls)
            self._usual = statistics.median(self.fixed), statistics.median(self.call)
            self.multiple.append(timings.total_ms / self.usual(calls))
            ordered = sorted(self.multiple)
            self._quantile = ordered[min(len(ordered) - 1, math.ceil(QUANTILE * len(ordered)))]

    def usual(self, calls: int) -> float:
        """Milliseconds that half of all runs keep."""
        fixed, call = self._usual
        return fixed + calls * call

    def kept(self, calls: int) -> float:
        """Milliseconds that QUANTILE of all runs keep, as far as so few can tell."""
        return self.usual(calls) * self._quantile


class Deadlines:
    """The promises of one Sampler. Its clones share `times`: they run the same weights in as many threads."""

    def __init__(self, pipeline: Pipeline, times: dict[Size, RunTimes] | None = None) -> None:
        self.pipeline, self.manifest = pipeline, pipeline.manifest
        self.times: dict[Size, RunTimes] = {} if times is None else times

    def sample(self, budget: Budget, options: Mapping[str, Any], n: int | None, progress: bool) -> Batch:
        """A batch within the budget. DeadlineError where no fitted setting can keep it."""
        began = perf_counter()
        if budget.anytime and self.pipeline.backend.ON_DEVICE:
            raise ArgumentError("anytime: found a backend that runs whole chains on a device; expected one on the CPU")
        settings = self._settings(options)
        request = self._request(options, settings[0], n)
        times = self._times(request, settings, options)
        chosen = self._choose(budget, settings, times, len(request))
        if chosen is not settings[0]:
            request = self._of(request, chosen, options)
        calls = len(request.table.rows)
        watcher = _Watcher(request.watch, began, budget.milliseconds, calls)
        batch = self.pipeline.run(replace(request, watch=watcher) if budget.anytime else request, progress)
        done = watcher.done
        if done == calls:
            times.add(calls, batch.timings)
        took = 1e3 * (perf_counter() - began)
        promise = Deadline(budget.milliseconds, times.kept(calls), took, calls, done)
        return replace(batch, deadline=promise)

    def _settings(self, options: Mapping[str, Any]) -> tuple[Defaults, ...]:
        """The bundle's fitted settings, the best first; ArgumentError where there are none, or another is asked for."""
        check_alone(options)
        if self.manifest.fitted is None:
            raise ArgumentError(
                "budget_ms chooses among settings that are fitted to a bundle, but this one has none; expected some: "
                f"{command('fit-setting', self.pipeline.bundle.path)}"
            )
        return self.manifest.fitted.settings

    def _request(self, options: Mapping[str, Any], setting: Defaults, n: int | None) -> Request:
        return resolve.resolve_request(self.pipeline, {**options, "steps": setting.steps}, "sample", n=n)

    def _of(self, request: Request, chosen: Defaults, options: Mapping[str, Any]) -> Request:
        """The same request with this setting."""
        given = {**options, "steps": chosen.steps}
        setting, table = resolve.chain_of(self.pipeline, given, request.setting.prior)
        return replace(request, setting=setting, table=table)

    def probe(self, options: Mapping[str, Any], n: int) -> bool:
        """Make one of the runs that a first promise for this size waits for; False where there is none left to make."""
        settings = self._settings(options)
        request = self._request(options, settings[0], n)
        return self._probe(self._known(request), request, settings, options)

    def _times(self, request: Request, settings: tuple[Defaults, ...], options: Mapping[str, Any]) -> RunTimes:
        """Those of requests of this size; measured now where there were too few."""
        times = self._known(request)
        while self._probe(times, request, settings, options):
            pass
        return times

    def _known(self, request: Request) -> RunTimes:
        asked = request.setting
        key = (len(request), request.lanes, asked.guidance_interval, asked.quantize_denoised)
        if key not in self.times:
            self.times.setdefault(key, RunTimes(probes=2 * PROBES + 1))  # that of another clone, if it was faster, stays
        return self.times[key]

    def _probe(
        self, times: RunTimes, request: Request, settings: tuple[Defaults, ...], options: Mapping[str, Any]
    ) -> bool:
        left = times.probes
        if left <= 0:
            return False
        end = (max, min)[left % 2](settings, key=lambda one: one.steps)
        # Whole whatever becomes of the caller's own run: what it promises rests on all of them.
        run = self._of(replace(request, watch=None, stop=None), end, options)
        timings = self.pipeline.run(run).timings
        if left <= 2 * PROBES:  # the first run of a shape may pay for a runtime's preparation
            times.add(len(run.table), timings)
        times.probes = left - 1  # a run that failed is to be made again
        return True

    def _choose(self, budget: Budget, settings: tuple[Defaults, ...], times: RunTimes, n: int) -> Defaults:
        for setting in settings:
            if times.kept(setting.steps) <= budget.milliseconds:
                return setting
        fastest = min(settings, key=lambda one: one.steps)
        if budget.at_most:
            return fastest
        raise DeadlineError(
            f"budget_ms is {budget.milliseconds:g}, which no fitted setting keeps here: found {fastest.steps} "
            f"{'call' if fastest.steps == 1 else 'calls'} for {n} {'image' if n == 1 else 'images'} in "
            f"{times.kept(fastest.steps):.3g} ms (99 of 100 runs; half of them in {times.usual(fastest.steps):.3g}); "
            "expected no more than the budget. Take that with at_most, ask for fewer images at a time, or raise the budget."
        )


class _Watcher:
    """Ends a chain where another call would end after the budget; the last prediction is the image then."""

    def __init__(self, callback: Watch | None, began: float, budget_ms: float, calls: int) -> None:
        self.callback, self.began, self.budget_ms = callback, began, budget_ms
        self.last = began
        self.done = calls  # that every sample had

    def __call__(self, info: StepInfo) -> object:
        now = perf_counter()
        step, self.last = now - self.last, now
        answer = self.callback(info) if self.callback is not None else None
        late = 1e3 * (now + step - self.began) > self.budget_ms
        if answer or not late or info.step + 1 == info.steps:
            return answer
        self.done = min(self.done, info.step + 1)
        return FINISH

