"""Fitting the settings of a bundle, one count of calls after the other, and the proof of each on seeds it has not seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import Sampler
from engine.solver.timesteps import kept_timesteps
from export.fitting.candidate import Candidate, nearest, resampled
from export.fitting.gits import Imitation, Trajectory, teach, teacher_options
from export.fitting.objective import Conditions, Objective, Score
from export.fitting.search import Record, Search

F64 = npt.NDArray[np.float64]

CALLS = (1, 2, 3, 4, 5, 6, 8, 10)
FIRST_SEED = 5_000_000  # of the search; those of the proof follow UNSEEN later
UNSEEN = 1_000_000
TEACHER_VALUES = 2**23  # of all states in one step of the teacher's, at most 64 samples
# Half the logarithm of the signal-to-noise ratio where chains from an image are tried to start: about t = 300, 400 and 500
# of the linear schedule.
STARTS = (-0.2, -0.7, -1.2)
RUNNERS_UP = 4  # settings that are put to the proof where the best of the search does not hold
Say = Callable[[str], None]


@dataclass(frozen=True)
class Fit:
    """The setting of one count of calls: what was found, and how it and the plain setting did on unseen seeds.

    candidate, score  None where nothing was better than the plain setting
    finished          whether the search ended by itself, not for lack of time
    """

    calls: int
    candidate: Candidate | None
    score: Score | None
    plain: Score
    evaluations: int
    finished: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Fitting:
    """One bundle's fit.

    image     whether chains start from the start image
    inputs    those that are not drawn, by name: one for all samples, or rows that they take in turn
    guidance  the weight that the settings are fitted for
    """

    def __init__(self, sampler: Sampler, image: bool, inputs: dict[str, Any], say: Say, guidance: float = 0.0) -> None:
        self.sampler, self.image, self.say, self.guidance = sampler, image, say, guidance
        self.conditions = Conditions(sampler, inputs)
        self.alpha_bar = sampler.bundle.manifest.schedule.schedule().alpha_bar
        self.log_snr: F64 = 0.5 * (np.log(self.alpha_bar) - np.log1p(-self.alpha_bar))
        self.found: dict[int, Candidate] = {}
        self._taught: Trajectory | None = None

    @property
    def teacher_seeds(self) -> int:
        """Samples of the teacher."""
        return max(2, min(64, TEACHER_VALUES // math.prod(self.sampler.bundle.manifest.pipeline.state.shape)))

    @property
    def teacher_start(self) -> int:
        """The timestep that the teacher starts at."""
        return nearest(self.log_snr, np.array(STARTS[1:2]))[0] if self.image else len(self.alpha_bar) - 1

    def teacher(self) -> Trajectory:
        """The teacher's trajectories, made once."""
        if self._taught is None:
            seeds = list(range(FIRST_SEED, FIRST_SEED + self.teacher_seeds))
            self._taught = teach(self.sampler, seeds, self._teachers, self.conditions)
        return self._taught

    @property
    def _teachers(self) -> dict[str, Any]:
        return teacher_options(self.image, self.teacher_start, self.guidance)

    def starts(self, calls: int) -> Iterator[Candidate]:
        """Where the search for a count begins: the shapes of counts that are done, Karras from several levels, GITS."""
        for other in sorted(self.found, key=lambda done: abs(math.log(done / calls)))[:2]:
            if shape := resampled(self.found[other], self.log_snr, calls):
                yield shape
        first = nearest(self.log_snr, np.array(STARTS)) if self.image else [len(self.alpha_bar) - 1]
        for t in first:
            if t + 1 < calls:
                continue
            steps = kept_timesteps(self.alpha_bar, calls, "karras", t)[::-1].tolist()
            yield Candidate(tuple(steps), self.image, noise_scale=0.84, guidance=self.guidance)
        yield Candidate(self.teacher().steps(calls), self.image, noise_scale=0.84, guidance=self.guidance)
        if not self.image:
            steps = kept_timesteps(self.alpha_bar, calls, "trailing", None)[::-1].tolist()
            method = "dpmpp_2m" if calls > 2 else "ddim"
            yield Candidate(tuple(steps), False, method, eta=0.0, guidance=self.guidance)

    def run(
        self, objective: Objective, proof: Objective, record: Record, counts: Sequence[int], seconds: float
    ) -> Iterator[Fit]:
        """Fit every count; `seconds` for all of them, shared by what they cost."""
        began = time.monotonic()
        left = sorted(counts, key=lambda calls: abs(math.log(calls / 5)))  # 5 first: the others begin with its shape
        while left:
            calls = left[0]
            share = (calls + 3) / sum(other + 3 for other in left)
            bound = objective.bound_beside(objective.score(plain_options(self.sampler, calls, self.guidance)))
            search = Search(record, self._judge(objective, f"{calls} calls", bound), self.log_snr, bound)
            search.seconds = max(0.0, share * (seconds - (time.monotonic() - began)))
            search.run(self.starts(calls))
            self.found[calls] = search.best
            yield self._proved(calls, search, proof)
            left = left[1:]

    def imitate(self, counts: Sequence[int], unseen: Sequence[int]) -> Iterator[Fit]:
        """Fit the timesteps of every count to the teacher's trajectories; evenly spaced ones are the plain setting here."""
        t = self.teacher_start
        proof = Imitation(self.sampler, list(unseen), self._teachers, self.conditions)
        for calls in counts:
            steps = kept_timesteps(self.alpha_bar, calls, "trailing", t)[::-1].tolist()
            even = Candidate(tuple(steps), self.image, eta=0.0, guidance=self.guidance)
            fitted = replace(even, timesteps=self.teacher().steps(calls))
            tried = [fitted, *(replace(one, method="dpmpp_2m") for one in (fitted, even) if calls > 2)]
            plain, *scores = (proof.score(one.options) for one in (even, *tried))
            score, best = min(zip(scores, range(len(tried)), strict=True), key=lambda pair: pair[0].fd)
            kept = score.fd <= plain.fd
            yield Fit(calls, tried[best] if kept else None, score if kept else None, plain, len(tried), True)
            self.say(f"{calls} calls: {score.fd:.3g} from the teacher")

    def _judge(self, objective: Objective, label: str, bound: float) -> Callable[[Candidate], Score]:
        best = [math.inf]

        def judge(candidate: Candidate) -> Score:
            score = objective.score(candidate.options)
            if score.colour <= bound:
                best[0] = min(best[0], score.fd)
            self.say(f"{label}: FD {best[0]:.1f}")
            return score

        return judge

    def _proved(self, calls: int, search: Search, proof: Objective) -> Fit:
        """The best candidate that holds on unseen seeds: within the bound of colour, and no worse in FD than plain."""
        self.say(f"{calls} calls: unseen seeds")
        plain = proof.score(plain_options(self.sampler, calls, self.guidance))
        bound = proof.bound_beside(plain)
        ranked = sorted(search.tried, key=lambda candidate: search.tried[candidate].rank)
        for candidate in ranked[:RUNNERS_UP]:
            score = proof.score(candidate.options).within(bound)
            if not score.excess and score.fd <= plain.fd:
                return Fit(calls, candidate, score, plain, len(search.tried), search.finished)
        return Fit(calls, None, None, plain, len(search.tried), search.finished)


def plain_options(sampler: Sampler, calls: int, guidance: float = 0.0) -> dict[str, Any]:
    """The plain setting of a count of calls: the recorded one where that has as many, else evenly spaced steps."""
    recorded = sampler.bundle.manifest.defaults
    if recorded.steps == calls and recorded.guidance == guidance:
        return {"setting": "plain"}
    return {"setting": "plain", "steps": calls, "spacing": "trailing", "guidance": guidance}
