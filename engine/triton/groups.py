"""Samples that run together: those with equal settings and inputs of one shape, whichever request they came with.

Each keeps its own seed. Triton hands over together only requests that sent the same set of inputs; what those inputs say is
compared here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from engine.backends import backend_class
from engine.errors import Cancelled, EngineError, NumericsError
from engine.resolve import SETTING_OPTIONS
from engine.result import Batch, Setting, StepInfo
from engine.sampler import Sampler
from engine.triton.answers import Answer, Rows
from engine.triton.samples import Ask
from engine.triton.tensors import IMAGE, starts_from_pixels

Log: TypeAlias = "Callable[[str], object]"


@dataclass(frozen=True)
class Member:
    """One sample of a request."""

    answer: Answer
    ask: Ask
    index: int

    @property
    def kind(self) -> Any:
        """What two samples must have in common to run at once: the setting, and which inputs are given in which shape."""
        shapes = tuple((name, array.shape[1:]) for name, array in self.ask.inputs.items())
        return self.ask.settings[self.index], shapes


def run_all(sampler: Sampler, answers: Sequence[Answer], log: Log) -> int:
    """Run every sample of these requests; each answer has its results or an error afterwards. How many runs it took."""
    groups: dict[Any, list[Member]] = {}
    for answer in answers:
        if answer.ask is not None:
            for index in range(len(answer.ask)):
                member = Member(answer, answer.ask, index)
                groups.setdefault(member.kind, []).append(member)
    return sum(run_group(sampler, members, log) for members in groups.values())


def run_group(sampler: Sampler, members: Sequence[Member], log: Log) -> int:
    """Run samples of one kind at once; an input that breaks the network costs only the request that sent it."""
    members = [member for member in members if member.answer.error is None]
    answers = list(dict.fromkeys(member.answer for member in members))
    watch = Watch(answers, log)
    if watch.all_gone():
        return 0
    try:
        rows = _rows(sampler, _sample(sampler, members, watch))
    except Cancelled:
        return 1  # the watch has told every answer
    except NumericsError as error:
        if len(answers) > 1:
            parts = [[member for member in members if member.answer is alone] for alone in answers]
            return 1 + sum(run_group(sampler, part, log) for part in parts)
        answers[0].fail(error)
    except EngineError as error:
        for answer in answers:
            answer.fail(error)
    else:
        for row, member in enumerate(members):
            member.answer.take(member.ask, member.index, rows, row)
    return 1


class Watch:
    """Ends a run that no client waits for any more; one question to the server a step while the first of them waits."""

    def __init__(self, answers: Sequence[Answer], log: Log) -> None:
        self._waiting = list(answers)
        self._log = log

    def all_gone(self) -> bool:
        """Whether every client has cancelled."""
        while self._waiting and self._waiting[0].cancelled():
            self._waiting.pop(0)
        return not self._waiting

    def __call__(self, done: StepInfo) -> bool:
        gone = self.all_gone()
        if gone:
            self._log(f"stopped after step {done.step + 1} of {done.steps}: every request of the run was cancelled")
        return gone


def _sample(sampler: Sampler, members: Sequence[Member], watch: Watch) -> Batch:
    first = members[0].ask
    setting: Setting = first.settings[members[0].index]
    options: dict[str, Any] = {name: getattr(setting, name) for name in SETTING_OPTIONS}
    for name in first.inputs:
        options[name] = np.stack([member.ask.inputs[name][member.index] for member in members])
    return sampler.sample(
        seed=np.array([member.ask.seeds[member.index] for member in members], np.uint64),
        # On a GPU all steps are one launch, which watching would take apart: there a run is cancelled before it starts.
        callback=None if backend_class(sampler.backend).ON_DEVICE else watch,
        **options,
    )


def _rows(sampler: Sampler, batch: Batch) -> Rows:
    """Every output of a run by name."""
    manifest = sampler.bundle.manifest
    start, drawn = manifest.pipeline.state.start, manifest.drawn
    rows: Rows = {IMAGE: batch.images}
    if drawn is not None:
        rows[drawn.name] = batch.values[drawn.name]
    if start is not None:
        rows[start] = batch.pixels(start) if starts_from_pixels(manifest) else batch.values[start]
    return rows
