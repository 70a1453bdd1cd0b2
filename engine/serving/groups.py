"""Samples that run together: those of one verb, with equal settings or budgets and inputs of one shape, whichever request
they came with.

Each keeps its own seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from engine.abilities import autoencodes
from engine.backends import backend_class
from engine.bundle.manifest import Manifest
from engine.bundle.pipeline import X
from engine.cascade import Cascade, CascadeBatch
from engine.deadline import Budget
from engine.errors import Cancelled, DeadlineError, EngineError, HostMemoryError, NumericsError
from engine.result import Batch, StepInfo
from engine.sampler import Sampler
from engine.serving.answers import Answer, Run
from engine.serving.asks import Ask

Log: TypeAlias = "Callable[[str], object]"
MOMENT = 1e-6  # ms: a budget of which nothing is left
IMAGE, CALLS = "image", "calls"  # outputs beside the values of a bundle's pipeline


@dataclass(frozen=True)
class Member:
    """One sample of a request."""

    answer: Answer
    ask: Ask
    index: int

    @property
    def kind(self) -> Any:
        """What two samples must have in common to run at once: verb, setting or budget, shapes of the inputs, and whether
        steps are shown, so that none waits for the previews of others."""
        shapes = tuple((name, array.shape[1:]) for name, array in self.ask.inputs.items())
        return self.ask.verb, self.ask.options[self.index], self.budget, shapes, self.answer.shows_steps

    @property
    def budget(self) -> Budget | None:
        """That of the sample."""
        return self.ask.budgets[self.index] if self.ask.budgets else None


def run_all(sampler: Sampler | Cascade, answers: Sequence[Answer], log: Log) -> int:
    """Run every sample of these requests; each answer has its results or an error afterwards. How many runs it took.

    The tightest budgets come first, and an answer may be sent as soon as it is complete: it need not wait for other runs.
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
        for answer in _answers(members):
            answer.send_if_complete()
    return runs


def _answers(members: Sequence[Member]) -> list[Answer]:
    return list(dict.fromkeys(member.answer for member in members))


def _milliseconds(members: Sequence[Member]) -> float:
    budget = members[0].budget
    return math.inf if budget is None else budget.milliseconds


def run_group(sampler: Sampler | Cascade, members: Sequence[Member], log: Log) -> int:
    """Run samples of one kind at once; an input that breaks the network costs only the request that sent it, and what has
    no room together is run request by request."""
    members = [member for member in members if member.answer.error is None]
    answers = _answers(members)
    watch = Watch(members)
    if watch.all_gone():
        return 0
    try:
        batch = _sample(sampler, members, watch)
        run = Run(batch, _rows(sampler.bundle.manifest, batch))
    except Cancelled as error:
        log(f"stopped after step {error.step} of {error.steps}: every request of the run was cancelled")
        return 1
    except (NumericsError, HostMemoryError) as error:
        if len(answers) > 1:
            parts = [[member for member in members if member.answer is alone] for alone in answers]
            return 1 + sum(run_group(sampler, part, log) for part in parts)
        answers[0].fail(error)
    except EngineError as error:
        for answer in answers:
            answer.fail(error)
    else:
        for row, member in enumerate(members):
            member.answer.take(member.ask, member.index, run, row)
    return 1


class Watch:
    """Ends a run that no client waits for any more (one question a time while the first of them waits), and where steps are
    shown hands each answer its images of the step."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members, self._answers = members, _answers(members)
        self._waiting = list(self._answers)

    def all_gone(self) -> bool:
        """Whether every client has cancelled."""
        while self._waiting and self._waiting[0].cancelled():
            self._waiting.pop(0)
        return not self._waiting

    def __call__(self, done: StepInfo) -> bool:
        gone = self.all_gone()
        if not gone:
            here, images = self._members[done.first : done.first + len(done.x)], done.images()
            for answer in _answers(here):
                shown = {member.index: image for member, image in zip(here, images, strict=True) if member.answer is answer}
                answer.after_step(done, shown)
        return gone


def _sample(sampler: Sampler | Cascade, members: Sequence[Member], watch: Watch) -> Batch:
    first = members[0].ask
    options = dict(first.options[members[0].index])
    for name in first.inputs:
        options[name] = np.stack([member.ask.inputs[name][member.index] for member in members])
    edits = [member.ask.edits[member.index] if member.ask.edits else {} for member in members]
    if names := dict.fromkeys(name for edit in edits for name in edit):
        options["edits"] = {name: [edit.get(name, 0.0) for edit in edits] for name in names}
    elif first.verb == "edit":
        options["edits"] = {}
    if "stages" in options:  # of a cascade, in a form that can be compared
        options["stages"] = [dict(stage) for stage in options["stages"]]
    if isinstance(sampler, Sampler) and first.verb == "reconstruct" and autoencodes(sampler.bundle.manifest):
        return sampler.reconstruct(**options)  # without a step: no seeds, and nothing to watch
    seeds = np.array([member.ask.seeds[member.index] for member in members], np.uint64)
    if not ("what" in options and options["what"].ndim == 1):  # those of an edit are what it edits
        options["seed"] = seeds
    if members[0].answer.shows_steps:  # then all of the run do
        options["callback"] = watch
    elif not backend_class(sampler.backend).ON_DEVICE:  # there all steps are one launch: a run is cancelled before it starts
        options["stop"] = watch.all_gone
    budget = members[0].budget
    if budget is None:
        batch: Batch = getattr(sampler, first.verb)(**options)
        return batch
    passed = max(member.answer.passed_ms() for member in members)
    left = max(budget.milliseconds - passed, MOMENT)
    try:
        return sampler.sample(budget_ms=left, at_most=budget.at_most, anytime=budget.anytime, **options)
    except DeadlineError as error:
        raise DeadlineError(f"{error} (Of {budget.milliseconds:g} ms {passed:.3g} had passed before the run.)") from error


def _rows(manifest: Manifest, batch: Batch) -> dict[str, np.ndarray]:
    """Every output of a run by name."""
    if isinstance(batch, CascadeBatch):
        return {IMAGE: batch.images} | {low_image(k): stage.images for k, stage in enumerate(batch.stages[:-1], 1)}
    start, drawn = manifest.pipeline.state.start, manifest.drawn
    rows: dict[str, np.ndarray] = {IMAGE: batch.images}
    if batch.deadline is not None:
        rows[CALLS] = np.full((len(batch.images), 1), batch.deadline.calls, np.int32)
    if drawn is not None and drawn.name in batch.values:
        rows[drawn.name] = batch.values[drawn.name]
    if start is not None:
        rows[start] = batch.pixels(start) if starts_from_pixels(manifest) else batch.values[start]
    return rows


def low_image(stage: int) -> str:
    """The output that holds the images of a cascade's stage before the last, counted from 1."""
    return f"{IMAGE}_{stage}"


def starts_from_pixels(manifest: Manifest) -> bool:
    """Whether the image that the chain may start from is a picture: where the state itself is the image."""
    return manifest.pipeline.state.start is not None and manifest.pipeline.image == X
