"""The crew of a Ray job: what it hands out, takes back and gives up, on a played cluster that dies on cue.

The real one is in tests/integration/test_bulk_ray.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Bundle
from engine.bulk.cluster import Cluster, Place, places
from engine.bulk.crew import DEPTH, Crew
from engine.bulk.files import JobFolder
from engine.bulk.job import describe
from engine.bulk.run import Run, generate
from engine.errors import BulkError, NumericsError
from tests.bulk_jobs import MEANS, opened, run, small_job, whole_hash
from tests.toy_family import build_family
from tests.unit.test_bulk import Stop


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__("a long traceback")
        self.cause = cause


@dataclass(eq=False)
class Call:
    """One call under way; `act` runs it."""

    actor: int
    name: str
    act: Callable[[], Any]


@dataclass
class PlayedRay:
    """Ray as the crew sees it. script(actor number, "open" or a shard's index) may return "die", "wait", an error."""

    script: Callable[[int, Any], Any] = lambda actor, what: None
    cpus: tuple[float, ...] = (2,)
    gpus: int = 0
    actors: int = 0
    alive: set[int] = field(default_factory=set)
    made: Counter[int] = field(default_factory=Counter)
    most: int = 0
    under_way: Counter[int] = field(default_factory=Counter)
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))

    def nodes(self) -> list[dict[str, Any]]:
        found = [{"Alive": True, "Resources": {"CPU": cpus, "GPU": self.gpus}} for cpus in self.cpus]
        return [*found, {"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **resources: Any) -> Callable[[type], Any]:
        assert resources == {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 1}
        return lambda kind: SimpleNamespace(remote=lambda: self._actor(kind()))

    def _actor(self, inner: Any) -> Any:
        number = self.actors
        self.actors += 1
        self.alive.add(number)

        def method(name: str) -> Any:
            def start(*arguments: Any) -> Call:
                what = "open" if name == "open" else arguments[0].index
                self.under_way[number] += name == "make"
                self.most = max(self.most, self.under_way[number])
                return Call(number, name, lambda: self._act(number, what, lambda: getattr(inner, name)(*arguments)))

            return SimpleNamespace(remote=start)

        return SimpleNamespace(number=number, open=method("open"), make=method("make"))

    def _act(self, number: int, what: Any, work: Callable[[], Any]) -> Any:
        told = self.script(number, what)
        if told == "die" or number not in self.alive:
            self.alive.discard(number)
            raise RayError("killed")
        if isinstance(told, Exception):
            raise RayTaskError(told)
        self.made[what] += 1
        return work()

    def wait(self, refs: list[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        assert refs, "some call is always under way"
        ready = [ref for ref in refs if not (ref.name == "open" and self.script(ref.actor, "open") == "wait")]
        return ready[:1], []

    def get(self, ref: Call) -> Any:
        self.under_way[ref.actor] -= ref.name == "make"
        return ref.act()

    def kill(self, actor: Any) -> None:
        self.alive.discard(actor.number)
        self.under_way[actor.number] = 0


def play(out: Path, ray: PlayedRay, means: Any = None, cluster: Cluster | None = None) -> tuple[PlayedRay, Stop]:
    """Run the small job with a crew on a played cluster."""
    progress, means = Stop(), means or replace(MEANS, threads=1)
    run(out, means=means, progress=progress, make=lambda given: Crew(ray, cluster or Cluster(), given).work())
    assert not ray.alive, "no actor is left"
    return ray, progress


class TestCrew:
    def test_the_same_bytes(self, tmp_path: Path) -> None:
        ray, progress = play(tmp_path / "crew", PlayedRay())
        assert ray.made == {"open": 2, **dict.fromkeys(range(5), 1)}
        assert ray.most == DEPTH, "no more is ever under way"
        assert progress.notes == []
        assert whole_hash(tmp_path / "crew") == run(tmp_path / "alone").manifest["sha256"]

    @pytest.mark.parametrize("workers", [1, 3, 9])
    def test_any_number_of_workers(self, workers: int, tmp_path: Path) -> None:
        ray, _ = play(tmp_path / "crew", PlayedRay(cpus=(4, 1.5, 0.5, 5)), cluster=Cluster(workers=workers))
        assert ray.actors == min(workers, 5), "no more than there is work for"
        assert whole_hash(tmp_path / "crew") == run(tmp_path / "alone").manifest["sha256"]

    @pytest.mark.parametrize("victim", range(5))
    def test_a_dead_worker_is_replaced_and_its_shards_made_again(self, victim: int, tmp_path: Path) -> None:
        deaths = [victim]

        def script(actor: int, what: Any) -> Any:
            if what in deaths:
                deaths.remove(what)
                return "die"
            return None

        ray, progress = play(tmp_path / "crew", PlayedRay(script))
        assert ray.actors in (2, 3)
        assert len(progress.notes) == 1
        assert f"shard-0000{victim}.npy" in progress.notes[0]
        assert progress.notes[0].startswith("a worker died (RayError: killed); it had ")
        assert whole_hash(tmp_path / "crew") == run(tmp_path / "alone").manifest["sha256"]

    def test_a_shard_that_kills_every_worker(self, tmp_path: Path) -> None:
        ray = PlayedRay(lambda actor, what: "die" if what == 3 else None)
        with pytest.raises(BulkError, match=r"3 of them died one after the other at shard-00003\.npy .RayError: killed"):
            play(tmp_path, ray)
        assert not ray.alive

    def test_workers_that_never_get_ready(self, tmp_path: Path) -> None:
        ray = PlayedRay(lambda actor, what: "die")
        with pytest.raises(BulkError, match=r"3 of them died one after the other while loading .RayError: killed"):
            play(tmp_path, ray)
        assert not ray.alive
        assert list(tmp_path.iterdir()) == []

    def test_a_worker_that_waits_for_its_machine_holds_up_no_other(self, tmp_path: Path) -> None:
        ray, _ = play(tmp_path, PlayedRay(lambda actor, what: "wait" if actor == 0 else None))
        assert ray.made == {"open": 1, **dict.fromkeys(range(5), 1)}

    @pytest.mark.parametrize(("what", "where"), [("open", "loading the bundle"), (1, r"shard-00001\.npy, seeds 12 to 16")])
    def test_an_error_of_the_engine_ends_the_run(self, what: Any, where: str, tmp_path: Path) -> None:
        ray = PlayedRay(lambda actor, now: NumericsError("The graph returned NaN.") if now == what else None)
        with pytest.raises(BulkError, match=rf"a worker, at {where}: found NumericsError: The graph returned NaN"):
            play(tmp_path, ray)
        assert not ray.alive

    def test_machines_that_differ(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kinds = iter(["avx2", "avx512f"])
        monkeypatch.setattr("engine.bulk.maker.origin_of", lambda job, sampler: {"machine": next(kinds)})
        with pytest.raises(BulkError, match=r"made_by\.machine: found 'avx.*' in the folder's job, expected 'avx.*' as in"):
            play(tmp_path, PlayedRay())


    def test_inputs_travel_with_the_bundle(self, tmp_path: Path) -> None:
        family = Bundle.open(build_family(tmp_path / "family"))
        inputs = {"label": list(range(7))}
        job = describe(family, 7, seed=3, shard_size=3, batch=2, steps=2, inputs=inputs)
        means = replace(MEANS, threads=1, inputs=inputs)
        ray = PlayedRay()
        found = generate(job, family, tmp_path / "crew", means, make=lambda given: Crew(ray, Cluster(), given).work())
        assert found.manifest["sha256"] == generate(job, family, tmp_path / "alone", means).manifest["sha256"]


class TestPlaces:
    @pytest.mark.parametrize(
        ("cpus", "threads", "workers", "place"),
        [
            ((2,), None, None, Place(1, 2, False)),
            ((2,), 1, None, Place(2, 1, False)),
            ((2,), None, 2, Place(2, 1, False)),
            ((64,), None, None, Place(16, 4, False)),
            ((6,), None, None, Place(2, 3, False)),
            ((8, 0, 16), None, None, Place(6, 4, False)),
            ((8, 16), 8, 2, Place(2, 8, False)),
        ],
    )
    def test_processors_are_split(
        self, cpus: tuple[int, ...], threads: int | None, workers: int | None, place: Place, tmp_path: Path
    ) -> None:
        assert self.found(tmp_path, PlayedRay(cpus=cpus), threads=threads, workers=workers) == place

    def test_a_gpu_each(self, tmp_path: Path) -> None:
        ray = PlayedRay(cpus=(8, 8), gpus=4)
        assert self.found(tmp_path, ray, backend="tensorrt_rtx") == Place(8, 1, True)
        assert self.found(tmp_path, ray, backend="auto") == Place(4, 4, False), "the bundle has nothing for them"
        assert Place(8, 1, True).resources == {"num_cpus": 1, "num_gpus": 1}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"backend": "tensorrt"}, r"found nodes with \[2\] processors and 0 GPUs, expected one with a GPU"),
            ({"threads": 4}, r"found nodes with \[2\] processors and 0 GPUs, expected one with 4 processors; give"),
        ],
    )
    def test_none_that_fits(self, options: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(BulkError, match=message):
            self.found(tmp_path, PlayedRay(), **options)

    @staticmethod
    def found(out: Path, ray: PlayedRay, *, workers: int | None = None, **means: Any) -> Place:
        with JobFolder.open(out, small_job()) as folder:
            given = Run(opened(), replace(MEANS, **{"threads": None, **means}), folder, [], Stop())
            return places(ray, Cluster(workers=workers), given)

    def test_a_gpu_that_the_backend_does_not_use(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("engine.bulk.crew.places", lambda *_: Place(1, 1, True))
        ray = PlayedRay()
        monkeypatch.setattr(Place, "resources", {"num_cpus": 1})
        with pytest.raises(BulkError, match=r"a worker with a GPU: found that backend 'auto' is \w+ there, expected one of"):
            play(tmp_path, ray)
