"""A bulk job on many machines: one Ray actor a device; this process hands out shards and writes what returns.

The nodes need no shared disk: the bundle travels through Ray's object store, and so do the finished shards, of which at
most DEPTH an actor are under way. An actor that dies takes nothing along: its shards are made by another, and it is
replaced. What the engine itself raises would be raised again by the next, so it ends the run.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.backends.native import isa
from engine.bulk.cluster import Cluster, connected, load_ray, places
from engine.bulk.job import Inputs, Job, Shard
from engine.bulk.maker import BETWEEN, ON_A_GPU, Maker, Means, pack, unpack
from engine.bulk.run import Run
from engine.errors import BulkError

DEPTH = 2  # shards of one actor: the one it makes, and the next, so that it need not wait while this process writes
LOSSES = 3  # a shard that so many actors died over is not tried again
WAIT_SECONDS = 1.0

Bytes = npt.NDArray[np.uint8]


class Actor:
    """What runs on a device: opens the bundle that it is sent, then makes shards."""

    def open(
        self,
        job: Job,
        files: Sequence[Mapping[str, Bytes]],
        means: Means,
        features: Bytes | None,
        inputs: Inputs,
        environment: Mapping[str, str],
    ) -> dict[str, str]:
        """Load everything, and say what the shards will depend on."""
        os.environ.update(environment)
        model = None if features is None else features.tobytes()
        with tempfile.TemporaryDirectory(prefix="diffusevae-bulk-") as folder:
            # Once loaded, files that are mapped stay so when their names are gone: a killed actor leaves nothing behind.
            bundles = []
            for index, stage in enumerate(files):
                place = Path(folder, str(index))
                place.mkdir()
                bundles.append(unpack({name: data.data for name, data in stage.items()}, place))
            self.maker = Maker(job, bundles, replace(means, features=model, inputs=inputs))
        return self.maker.origin

    def make(self, shard: Shard) -> Bytes:
        """The bytes of a shard, as an array: those need not be copied on their way."""
        return np.frombuffer(self.maker.make(shard), np.uint8)


@dataclass
class Hand:
    """An actor and what it has to do, oldest first."""

    actor: Any
    ready: bool = False
    busy: dict[Any, Shard] = field(default_factory=dict)


def on_ray(cluster: Cluster) -> Callable[[Run], None]:
    """A way of making shards for `engine.bulk.run.generate`."""

    def make(run: Run) -> None:
        ray = load_ray(cluster)
        with connected(ray, cluster, run):
            Crew(ray, cluster, run).work()

    return make


class Crew:
    """The actors of one run, and who has which shard."""

    def __init__(self, ray: Any, cluster: Cluster, run: Run) -> None:
        self.ray, self.run = ray, run
        self.place = places(ray, cluster, run)
        self.pending = deque(run.missing)
        self.hands: list[Hand] = []
        self.refs: dict[Any, Hand] = {}  # what is under way: opening, or a shard in its hand's `busy`
        self.losses: Counter[int] = Counter()
        self.failed_openings = 0
        packed = [pack(bundle) for bundle in run.bundles]
        self.files = ray.put([{name: np.frombuffer(data, np.uint8) for name, data in one.items()} for one in packed])
        features = run.means.features
        self.features = None if features is None else ray.put(np.frombuffer(features, np.uint8))
        self.inputs = ray.put(dict(run.means.inputs))

    def work(self) -> None:
        """Make every missing shard."""
        try:
            while self.pending or any(hand.busy for hand in self.hands):
                self._hire()
                self._hand_out()
                finished, _ = self.ray.wait(list(self.refs), num_returns=1, timeout=WAIT_SECONDS)
                for ref in finished:
                    self._collect(ref)
        finally:
            for hand in self.hands:
                self.ray.kill(hand.actor)

    def _hire(self) -> None:
        """As many actors as there are places, or as there is work for."""
        wanted = min(self.place.count, len(self.pending) + sum(bool(hand.busy) for hand in self.hands))
        while len(self.hands) < wanted:
            actor = self.ray.remote(max_restarts=0, max_task_retries=0, **self.place.resources)(Actor).remote()
            hand = Hand(actor)
            means = replace(self.run.means, threads=self.place.threads, features=None, inputs={})
            environment = {isa.VARIABLE: os.environ[isa.VARIABLE]} if isa.VARIABLE in os.environ else {}
            sent = (self.run.job, self.files, means, self.features, self.inputs, environment)
            self.refs[actor.open.remote(*sent)] = hand
            self.hands.append(hand)

    def _hand_out(self) -> None:
        """The next shards to those who have least to do; near the end none gets a second that another could begin."""
        depth = DEPTH if len(self.pending) > self.place.count else 1
        for load in range(depth):
            for hand in self.hands:
                if self.pending and hand.ready and len(hand.busy) == load:
                    shard = self.pending.popleft()
                    ref = hand.actor.make.remote(shard)
                    hand.busy[ref] = shard
                    self.refs[ref] = hand

    def _collect(self, ref: Any) -> None:
        """Take what one call returned: an opened actor, a shard, a death, or an error that ends the run."""
        hand = self.refs.get(ref)
        if hand is None:
            return  # its actor has died since, over another call
        shard = hand.busy.get(ref)
        errors = self.ray.exceptions
        try:
            value = self.ray.get(ref)
        except errors.RayTaskError as error:
            what = "loading the bundle" if shard is None else f"{shard.file}, seeds {shard.seed} to {shard.seeds[-1]}"
            cause = getattr(error, "cause", None) or error
            raise BulkError(
                f"a worker, at {what}: found {type(cause).__name__}: {cause}; expected a shard; it would fail again, so the "
                f"run ends here; the shards that are finished are kept: run the same command again when this is mended"
            ) from error
        except errors.RayError as error:
            return self._lose(hand, error)
        del self.refs[ref]
        if shard is None:
            return self._opened(hand, value)
        del hand.busy[ref]
        self.run.folder.write(shard, value.data)
        self.run.progress.made(shard.n)

    def _opened(self, hand: Hand, origin: dict[str, str]) -> None:
        if self.place.gpu and not set(origin["backend"].split(BETWEEN)) <= set(ON_A_GPU):
            raise BulkError(
                f"a worker with a GPU: found that backend 'auto' is {origin['backend']} there, expected one of "
                f"{', '.join(ON_A_GPU)}; install one of them on the nodes, or name the backend with --backend"
            )
        self.run.folder.record(origin)
        hand.ready = True
        self.failed_openings = 0

    def _lose(self, hand: Hand, error: Exception) -> None:
        """An actor is gone: give its shards back and forget it; BulkError when that does not end."""
        self.hands.remove(hand)
        self.ray.kill(hand.actor)
        self.refs = {ref: other for ref, other in self.refs.items() if other is not hand}
        shards = list(hand.busy.values())
        self.pending.extendleft(reversed(shards))
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if shards:
            self.losses[shards[0].index] += 1  # the one it was at
        elif not hand.ready:
            self.failed_openings += 1
        if self.failed_openings >= LOSSES or any(count >= LOSSES for count in self.losses.values()):
            at = f"at {shards[0].file}" if shards else "while loading"
            raise BulkError(
                f"workers: found that {LOSSES} of them died one after the other {at} ({why}), expected them to live; look "
                f"at the nodes' memory, and whether diffusevae-engine is installed there; the finished shards are kept"
            ) from error
        files = ", ".join(shard.file for shard in shards) or "no shard"
        self.run.progress.note(f"a worker died ({why}); it had {files} to make, which others do now")

