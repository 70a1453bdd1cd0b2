"""Samples that run together: those with equal settings or budgets and inputs of one shape, whichever request they came with.

Each keeps its own seed. Triton hands over together only requests that sent the same set of inputs; what those inputs say is
compared here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from engine.backends import backend_class
from engine.deadline import Budget
from engine.errors import Cancelled, DeadlineError, EngineError, NumericsError
from engine.result import Batch, StepInfo
from engine.sampler import Sampler
from engine.triton.answers import Answer, Rows
from engine.triton.samples import Ask
from engine.triton.tensors import CALLS, IMAGE, starts_from_pixels

Log: TypeAlias = "Callable[[str], object]"
MOMENT = 1e-6  # ms: a budget of which nothing is left


@dataclass(frozen=True)
class Member:
    """One sample of a request."""

    answer: Answer
    ask: Ask
    index: int

    @property
    def kind(self) -> Any:
        """What two samples must have in common to run at once: the setting or budget, and the given inputs' shapes."""
        shapes = tuple((name, array.shape[1:]) for name, array in self.ask.inputs.items())
        return self.ask.options[self.index], self.budget, shapes

    @property
    def budget(self) -> Budget | None:
        """That of the sample."""
        return self.ask.budgets[self.index] if self.ask.budgets else None


def run_all(sampler: Sampler, answers: Sequence[Answer], log: Log) -> int:
    """Run every sample of these requests; each answer has its results or an error afterwards. How many runs it took.

    The tightest budgets come first, and an answer with budgets is sent at once: it need not wait for the others' runs.
    """
    groups: dict[Any, list[Member]] = {}
    for answer in answers:
        if answer.ask is not None:
            for index in range(len(answer.ask)):
                member = Member(answer, answer.ask, index)
                groups.setdefault(member.kind, []).append(member)
    runs = 0
    for members in sorted(groups.values(), key=_milliseconds):
        runs += run_group(sampler, members, log)
        for answer in dict.fromkeys(member.answer for member in members if member.budget is not None):
            answer.send_if_complete()
    return runs


def _milliseconds(members: Sequence[Member]) -> float:
    budget = members[0].budget
    return math.inf if budget is None else budget.milliseconds


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
    options = dict(first.options[members[0].index])
    for name in first.inputs:
        options[name] = np.stack([member.ask.inputs[name][member.index] for member in members])
    edits = [member.ask.edits[member.index] if member.ask.edits else {} for member in members]
    if names := dict.fromkeys(name for edit in edits for name in edit):
        options["edits"] = {name: [edit.get(name, 0.0) for edit in edits] for name in names}
    options["seed"] = np.array([member.ask.seeds[member.index] for member in members], np.uint64)
    # On a GPU all steps are one launch, which watching would take apart: there a run is cancelled before it starts.
    options["callback"] = None if backend_class(sampler.backend).ON_DEVICE else watch
    budget = members[0].budget
    if budget is None:
        return sampler.sample(**options)
    passed = members[0].answer.passed_ms()  # the same for all: they arrived together
    try:
        return sampler.sample(budget_ms=max(budget.milliseconds - passed, MOMENT), at_most=budget.at_most, **options)
    except DeadlineError as error:
        raise DeadlineError(f"{error} (Of {budget.milliseconds:g} ms {passed:.3g} had passed before the run.)") from error


def _rows(sampler: Sampler, batch: Batch) -> Rows:
    """Every output of a run by name."""
    manifest = sampler.bundle.manifest
    start, drawn = manifest.pipeline.state.start, manifest.drawn
    rows: Rows = {IMAGE: batch.images}
    if batch.deadline is not None:
        rows[CALLS] = np.full((len(batch.images), 1), batch.deadline.calls, np.int32)
    if drawn is not None:
        rows[drawn.name] = batch.values[drawn.name]
    if start is not None:
        rows[start] = batch.pixels(start) if starts_from_pixels(manifest) else batch.values[start]
    return rows
