"""The search for the setting of one count of calls: starts from known shapes, then a pattern search until nothing improves.

Every score is kept in a record, so that a search that was stopped goes on where it was: the same candidates come in the same
order, and the scores of the first of them are there already.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ArgumentError
from export.fitting.candidate import Candidate
from export.fitting.objective import Score

STRIDES = (1.0, 0.5, 0.25)
GAIN = 0.003  # of FD, relative: less is noise of the seeds
Judge = Callable[[Candidate], Score]


@dataclass
class Record:
    """Scores by candidate, in a JSON file that is written after each; `of` names what they were measured on."""

    path: Path
    of: dict[str, Any]
    scores: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, of: dict[str, Any]) -> Record:
        """That of an earlier run over the same bundle, images, seeds and network; ArgumentError for another's."""
        if not path.exists():
            return cls(path, of)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            same, scores = found["of"] == json.loads(json.dumps(of)), found["scores"]
            if not all(len(entry) == 3 and all(math.isfinite(x) for x in entry) for entry in scores.values()):
                raise ValueError("a score is not three numbers")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(
                f"record {path}: found nothing that can be resumed ({error!r}), expected the record of a search; remove it, "
                "or name another with --record"
            ) from error
        if not same:
            raise ArgumentError(
                f"record {path}: found scores of another bundle, engine, images or seeds, expected this one's; remove it, "
                "or name another with --record"
            )
        return cls(path, of, scores)

    def score(self, candidate: Candidate, judge: Judge) -> Score:
        """The score that is known, or the judge's."""
        key = json.dumps(asdict(candidate))
        if key not in self.scores:
            score = judge(candidate)
            self.scores[key] = [score.fd, score.colour, score.excess]
            self.save()
        return Score(*self.scores[key])

    def save(self) -> None:
        """Write the file so that it is whole at any time."""
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps({"of": self.of, "scores": self.scores}, indent=1), encoding="utf-8")
        os.replace(part, self.path)


@dataclass
class Search:
    """The search for one count of calls.

    bound    of colour, whatever the record's scores were measured beside
    seconds  after which no further candidate is tried
    """

    record: Record
    judge: Judge
    log_snr: npt.NDArray[np.float64]
    bound: float
    seconds: float = math.inf
    tried: dict[Candidate, Score] = field(default_factory=dict)
    finished: bool = False

    @property
    def best(self) -> Candidate:
        """The best so far."""
        return min(self.tried, key=lambda candidate: self.tried[candidate].rank)

    def run(self, starts: Iterable[Candidate]) -> None:
        """Try the starts, then what is around the best of them until nothing improves or the time is over."""
        deadline = time.monotonic() + self.seconds
        for start in starts:
            self._try(start)
            if time.monotonic() > deadline:
                return
        self.finished = all(self._descend(stride, deadline) for stride in STRIDES)

    def _descend(self, stride: float, deadline: float) -> bool:
        """Move until no neighbour at this stride is better; False where the time was over first."""
        lucky: list[str] = []  # moves that helped, the latest first: they are tried first
        while True:
            at = self.best
            for name, candidate in _ordered(at.neighbours(self.log_snr, stride), lucky):
                if time.monotonic() > deadline:
                    return False
                if self._try(candidate) and self._better(candidate, at):
                    lucky = [name, *(other for other in lucky if other != name)]
                    break
            else:
                return True

    def _try(self, candidate: Candidate) -> bool:
        """Score it, where it is new in this search."""
        if candidate in self.tried:
            return False
        self.tried[candidate] = self.record.score(candidate, self.judge).within(self.bound)
        return True

    def _better(self, a: Candidate, b: Candidate) -> bool:
        found, old = self.tried[a], self.tried[b]
        return found.excess < old.excess or (found.excess == old.excess and found.fd < old.fd * (1 - GAIN))


def _ordered(moves: Iterator[tuple[str, Candidate]], first: list[str]) -> list[tuple[str, Candidate]]:
    return sorted(moves, key=lambda move: first.index(move[0]) if move[0] in first else len(first))
