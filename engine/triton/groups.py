"""Which samples run together? Those with equal settings, whichever request they came with; each keeps its own seed.

Triton hands over together only requests that sent the same set of inputs; what those inputs say is compared here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from engine.backends import GPU_BACKENDS
from engine.errors import Cancelled, EngineError, NumericsError
from engine.result import Batch, Setting, StepInfo
from engine.sampler import SETTING_OPTIONS, Sampler
from engine.triton.answers import Answer
from engine.triton.samples import Ask

Log: TypeAlias = "Callable[[str], object]"


@dataclass(frozen=True)
class Member:
    """One sample of a request."""

    answer: Answer
    ask: Ask
    index: int


def run_all(sampler: Sampler, answers: Sequence[Answer], log: Log) -> int:
    """Run every sample of these requests; each answer has its results or an error afterwards. How many runs it took."""
    groups: dict[tuple[Setting, bool], list[Member]] = {}
    for answer in answers:
        if answer.ask is not None:
            for index, setting in enumerate(answer.ask.settings):
                groups.setdefault((setting, answer.ask.z is not None), []).append(Member(answer, answer.ask, index))
    return sum(run_group(sampler, setting, members, log) for (setting, _), members in groups.items())


def run_group(sampler: Sampler, setting: Setting, members: Sequence[Member], log: Log) -> int:
    """Run samples of one setting at once; a latent that breaks the network costs only the request that sent it."""
    members = [member for member in members if member.answer.error is None]
    answers = list(dict.fromkeys(member.answer for member in members))
    watch = Watch(answers, log)
    if watch.all_gone():
        return 0
    try:
        batch = _sample(sampler, setting, members, watch)
    except Cancelled:
        return 1  # the watch has told every answer
    except NumericsError as error:
        if len(answers) > 1:
            parts = [[member for member in members if member.answer is alone] for alone in answers]
            return 1 + sum(run_group(sampler, setting, part, log) for part in parts)
        answers[0].fail(error)
    except EngineError as error:
        for answer in answers:
            answer.fail(error)
    else:
        for row, member in enumerate(members):
            member.answer.take(member.ask, member.index, batch, row)
    return 1


class Watch:
    """Asked after every step: is anybody still waiting? One question to the server a step while the first one is."""

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


def _sample(sampler: Sampler, setting: Setting, members: Sequence[Member], watch: Watch) -> Batch:
    latents = [member.ask.z[member.index] for member in members if member.ask.z is not None]
    return sampler.sample(
        seed=np.array([member.ask.seeds[member.index] for member in members], np.uint64),
        z=np.stack(latents) if latents else None,
        # On a GPU all steps are one launch, which watching would take apart: there a run is cancelled before it starts.
        callback=None if sampler.backend in GPU_BACKENDS else watch,
        **{name: getattr(setting, name) for name in SETTING_OPTIONS},
    )
