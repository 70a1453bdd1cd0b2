"""A run of a bulk job: look what the folder has, make what it lacks (here, or on Ray), write the manifest.

A run may end anywhere, by Ctrl-C or kill -9: the same call goes on with the shards that are missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.bulk.files import JobFolder
from engine.bulk.job import Job, Shard
from engine.bulk.maker import Maker, Means
from engine.bundle.reader import Bundle
from engine.places import check_folder


class Progress(Protocol):
    """A listener: `made` after each few images, `note` with a sentence when something happened."""

    def start(self, total: int, made: int) -> None:
        """The job has `total` images, of which `made` were there already."""

    def made(self, images: int) -> None:
        """So many more are made."""

    def note(self, text: str) -> None:
        """Something that is worth a line."""


class Silence:
    """A listener that reports nothing."""

    def start(self, total: int, made: int) -> None:
        """Ignored."""

    def made(self, images: int) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""


@dataclass(frozen=True)
class Run:
    """What a way of making shards is given: the missing ones, and where they go. later: the other stages of a cascade."""

    bundle: Bundle
    means: Means
    folder: JobFolder
    missing: Sequence[Shard]
    progress: Progress
    later: Sequence[Bundle] = ()

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """All stages."""
        return self.bundle, *self.later

    @property
    def job(self) -> Job:
        """The job as the folder has it."""
        return self.folder.job


@dataclass(frozen=True)
class Result:
    """A finished job: its manifest, and how many of its shards this run made."""

    manifest: dict[str, Any]
    shards_made: int
    images_made: int


def in_this_process(run: Run) -> None:
    """Make the missing shards one after the other."""
    maker = Maker(run.job, run.bundles, run.means)
    try:
        run.folder.record(maker.origin)
        for shard in run.missing:
            run.folder.write(shard, maker.make(shard, run.progress.made))
    finally:
        maker.close()


def generate(
    job: Job,
    bundle: Bundle,
    out: str | os.PathLike[str],
    means: Means = Means(),  # noqa: B008 (frozen)
    *,
    adopt_seed: bool = False,
    make: Callable[[Run], None] = in_this_process,
    progress: Progress | None = None,
    later: Sequence[Bundle] = (),
) -> Result:
    """Bring the folder `out` to the point where it holds the whole job, and return its manifest.

    later: of a cascade the bundles after the first, as `describe` was given them.
    make: in_this_process, or what engine.bulk.crew.on_ray returns. adopt_seed: see JobFolder.open.
    Raises what the Sampler raises, and BulkError.
    """
    progress = progress or Silence()
    with JobFolder.open(out, job, adopt_seed=adopt_seed) as folder:
        missing, damaged = folder.missing()
        for shard in damaged:
            progress.note(f"{folder.path / shard.file} is damaged or gone; it is made again")
        images = sum(shard.n for shard in missing)
        if job.features is None:  # how much a model of features puts out is not known yet
            each = math.prod((bundle, *later)[-1].manifest.pipeline.image_shape)
            check_folder(out, images * each // (1 if job.format == "npy" else 2))
        progress.start(job.n, job.n - images)
        if missing:
            make(Run(bundle, means, folder, missing, progress, later))
        return Result(folder.finish(), len(missing), images)
