"""Bulk jobs: the same bytes whichever process makes them, going on after any death, refusing what is not their own."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ArgumentError, Sampler
from engine.bulk.files import JobFolder
from engine.bulk.job import describe
from engine.bulk.maker import Maker, Means, pack, unpack
from engine.bulk.run import Run, Silence, in_this_process
from engine.errors import BulkError, NumericsError
from tests.bulk_jobs import MEANS, opened, run, samples, small_job, whole_hash
from tests.samplers import ANY_BACKEND, bundle, open_toy

ROOT = Path(__file__).parents[2]


class Stop(Silence):
    """Interrupts a run once so many images are made, and keeps what it was told."""

    def __init__(self, after: int = 2**62) -> None:
        self.left, self.notes, self.started = after, list[str](), (0, 0)

    def start(self, total: int, made: int) -> None:
        self.started = total, made

    def made(self, images: int) -> None:
        self.left -= images
        if self.left <= 0:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


class TestJob:
    def test_shards_cover_every_sample_once(self) -> None:
        job = small_job(seed=2**64 - 4)
        shards = list(job)
        assert [shard.n for shard in shards] == [5, 5, 5, 5, 3]
        assert [shard.first for shard in shards] == [0, 5, 10, 15, 20]
        assert [seed for shard in shards for seed in shard.seeds] == [(2**64 - 4 + i) % 2**64 for i in range(23)]
        assert [shard.file for shard in shards] == [f"shard-0000{i}.npy" for i in range(5)]
        assert [shard.n for shard in small_job(n=1)] == [1]
        with pytest.raises(ArgumentError, match=r"shard: found 5, expected 0 \.\. 4"):
            job.shard(5)

    def test_two_ways_to_say_a_setting_are_one_job(self) -> None:
        recorded = describe(opened("recorded"), 4, seed=0)
        setting = {"steps": 4, "spacing": "linspace", "t_start": 450, "temperature": 0.8, "guidance": 0.25}
        said = describe(opened("recorded"), 4, seed=0, **setting)
        assert recorded == said
        listed = describe(opened(), 4, seed=0, timesteps=[400, 9], noise_scale=np.array([0.8, 1.0]))
        assert listed == describe(opened(), 4, seed=0, steps=2, timesteps=(400, 9), noise_scale=[0.8, 1])
        assert json.loads(json.dumps(listed.as_dict())) == listed.as_dict(), "a folder of it is gone on with"
        assert describe(opened(), 4).seed != describe(opened(), 4).seed, "drawn"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n": None}, r"n: found none, expected the number of images of the whole job; say it with -n"),
            ({"n": 0}, r"n is 0; expected at least 1 image"),
            ({"format": "tarr"}, r"format: found 'tarr', expected one of npy, tar. Did you mean 'tar'\?"),
            ({"seed": [1, 2]}, r"seed: found a list of 2, expected one whole number"),
            ({"seed": 2**64}, r"expected 0 \.\. 2\*\*64 - 1"),
            ({"seed": True}, r"seed is True, a bool; expected an integer"),
            ({"shard_size": 0}, r"shard_size is 0; expected at least 1 image"),
            ({"batch": 0}, r"batch is 0; expected at least 1 image"),
            ({"steps": 0}, r"steps is 0; expected 1 \.\. 1000"),
            ({"prior": "bundle"}, r"prior"),
            ({"kind": "uncond", "guidance": 1.0}, r"guidance is 1, but nothing that this bundle's network is fed"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            small_job(**options)


class TestSameBytes:
    def test_a_job_is_what_the_sampler_gives(self, tmp_path: Path) -> None:
        progress = Stop()
        result = run(tmp_path, progress=progress)
        assert (result.shards_made, result.images_made, progress.started) == (5, 23, (23, 0))
        with open_toy(max_batch=2) as sampler:
            expected = [sampler.sample(shard.n, seed=shard.seeds[0], steps=2).images for shard in small_job()]
        np.testing.assert_array_equal(samples(tmp_path), np.concatenate(expected))
        assert whole_hash(tmp_path) == result.manifest["sha256"]
        shard = result.manifest["shards"][4]
        assert (shard["first"], shard["n"], shard["seeds"]) == (20, 3, [27, 29])
        assert result.manifest["made_by"]["backend"] == ANY_BACKEND

    @pytest.mark.parametrize("kind", ["form2", "zcond", "uncond", "recorded"])
    def test_every_kind_of_model(self, kind: str, tmp_path: Path) -> None:
        job = describe(opened(kind), 3, seed=1, shard_size=2)
        run(tmp_path, job, kind=kind)
        with open_toy(kind) as sampler:
            np.testing.assert_array_equal(samples(tmp_path)[:2], sampler.sample(2, seed=1).images)

    def test_any_order_any_threads_any_restart(self, tmp_path: Path) -> None:
        def backwards(given: Run) -> None:
            in_this_process(replace(given, missing=given.missing[::-1]))

        expected = run(tmp_path / "a").manifest["sha256"]
        assert run(tmp_path / "b", make=backwards).manifest["sha256"] == expected
        assert run(tmp_path / "c", means=replace(MEANS, threads=1)).manifest["sha256"] == expected
        made = []
        for after in (7, 6, 1, 2**62):
            try:
                made.append(run(tmp_path / "d", progress=Stop(after)).shards_made)
            except KeyboardInterrupt:
                assert not (tmp_path / "d" / "manifest.json").exists()
        assert made == [3], "the interrupted runs have finished two shards"
        assert whole_hash(tmp_path / "d") == expected
        again = run(tmp_path / "d", means=Means("no such backend"))
        assert (again.shards_made, again.manifest["sha256"]) == (0, expected), "nothing to do: nothing is loaded"

    def test_a_seed_that_was_drawn_stays(self, tmp_path: Path) -> None:
        first = run(tmp_path, small_job(seed=None), adopt_seed=True).manifest
        (tmp_path / "shard-00001.npy").unlink()
        assert run(tmp_path, small_job(seed=None), adopt_seed=True).manifest == first
        with pytest.raises(BulkError, match=rf"job\.seed: found {first['job']['seed']} in the folder's job, expected 7"):
            run(tmp_path)

    def test_a_bundle_may_travel(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        job, maker = small_job(), Maker(small_job(), unpack(pack(opened()), tmp_path / "elsewhere"), MEANS)
        expected = Maker(job, opened(), MEANS)
        assert maker.make(job.shard(4)) == expected.make(job.shard(4))
        assert maker.origin == expected.origin
        with pytest.raises(BulkError, match=r"found the bundle [0-9a-f]{64}, expected [0-9a-f]{64} as in the job"):
            Maker(job, opened("form2"), MEANS)
        with pytest.raises(BulkError, match=r"cannot be unpacked there .*expected room for [0-9,]+ bytes"):
            unpack(pack(opened()), tmp_path / "nowhere")


class TestDamage:
    @pytest.mark.parametrize("damage", ["bit", "cut", "longer", "gone", "line", "no line"])
    def test_a_damaged_shard_is_made_again(self, damage: str, tmp_path: Path) -> None:
        expected = run(tmp_path).manifest["sha256"]
        path, line = tmp_path / "shard-00002.npy", tmp_path / "shard-00002.npy.sha256"
        data = bytearray(path.read_bytes())
        data[200] ^= 1
        {
            "bit": lambda: path.write_bytes(data),
            "cut": lambda: path.write_bytes(data[:100]),
            "longer": lambda: path.write_bytes(path.read_bytes() + b"0"),
            "gone": path.unlink,
            "line": lambda: line.write_text("0" * 64 + "  shard-00002.npy\n"),
            "no line": line.unlink,
        }[damage]()
        progress = Stop()
        result = run(tmp_path, progress=progress)
        assert (result.shards_made, progress.started) == (1, (23, 18))
        assert whole_hash(tmp_path) == expected
        told = [] if damage == "no line" else [f"{path} is damaged or gone; it is made again"]
        assert progress.notes == told, "a shard without its line was never finished"

    def test_no_manifest_while_a_shard_is_missing(self, tmp_path: Path) -> None:
        run(tmp_path)
        (tmp_path / "shard-00002.npy").unlink()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=Stop(1))
        assert not (tmp_path / "manifest.json").exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n": 24}, r"job\.json, job\.n: found 23 in the folder's job, expected 24 as in this run; give the options"),
            ({"seed": 8}, r"job\.seed: found 7 .* expected 8"),
            ({"shard_size": 4}, r"job\.shard_size: found 5 .* expected 4"),
            ({"batch": 3}, r"job\.batch: found 2 .* expected 3"),
            ({"steps": 3}, r"job\.setting\.steps: found 2 .* expected 3"),
            ({"eta": 0.5}, r"job\.setting\.eta: found 0\.0 .* expected 0\.5"),
            ({"format": "tar"}, r"job\.format: found 'npy' .* expected 'tar'"),
            ({"features": b"model"}, r"job\.features: found None .* expected '9372c470eeadd5ecd9c3c74c2b3cb633"),
            ({"kind": "form2"}, r"job\.bundle: found '[0-9a-f]{64}' in the folder's job, expected '[0-9a-f]{64}'"),
        ],
    )
    def test_another_job(self, options: dict[str, Any], message: str, tmp_path: Path) -> None:
        run(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(BulkError, match=message):
            run(tmp_path, small_job(**options), kind=options.get("kind", "form1"))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_another_machine(self, tmp_path: Path) -> None:
        run(tmp_path)
        job = json.loads((tmp_path / "job.json").read_text())
        job["made_by"]["machine"] = "avx512f"
        (tmp_path / "job.json").write_text(json.dumps(job))
        (tmp_path / "shard-00000.npy").unlink()
        with pytest.raises(BulkError, match=r"made_by\.machine: found 'avx512f' .*; run on machines that are alike, or"):
            run(tmp_path)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("notes.txt", "", r"found 'notes\.txt' and no job\.json, expected an empty folder or one of this job"),
            ("shard-00000.npy", "", r"found 'shard-00000\.npy' and no job\.json"),
            ("job.json", "{", r"job\.json: found no JSON"),
            ("job.json", "[" * 100_000, r"job\.json: found no JSON"),
            ("job.json", "[]", r"expected a job's description, diffusevae-bulk-job of version 2"),
            ("job.json", '{"format": "diffusevae-bulk-job", "version": 1}', r"of version 2; choose another --out"),
            ("job.json", '{"format": "diffusevae-bulk-job", "version": 2, "job": {}}', r"the keys format, job, version"),
        ],
    )
    def test_a_folder_of_something_else(self, name: str, content: str, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(BulkError, match=message):
            run(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_one_run_at_a_time(self, tmp_path: Path) -> None:
        with (
            JobFolder.open(tmp_path, small_job()),
            pytest.raises(BulkError, match=r"found another run writing into it, expected one at a time"),
        ):
            run(tmp_path)
        assert run(tmp_path).shards_made == 5

    def test_a_bundle_that_was_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        old, new = opened(), (bundle("form2") / "manifest.json").read_bytes()
        monkeypatch.setattr("engine.bundle.reader.Bundle.read_manifest", lambda _: new)
        with pytest.raises(BulkError, match=r"found another bundle than the one that was opened"):
            describe(old, 3)


class TestDisk:
    def test_a_full_disk_leaves_whole_shards(self, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource", reason="this system has no resource limits")
        expected = run(tmp_path / "a").manifest["sha256"]
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fills_up(given: Run) -> None:
            in_this_process(replace(given, missing=given.missing[:2]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
            in_this_process(replace(given, missing=given.missing[2:]))

        try:
            with pytest.raises(BulkError, match=r"cannot be written .File too large.*finished are kept: run the same"):
                run(tmp_path / "b", make=fills_up)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(list((tmp_path / "b").iterdir())) == 5, "job.json, two shards and their lines"
        assert run(tmp_path / "b").shards_made == 3
        assert whole_hash(tmp_path / "b") == expected

    def test_a_place_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BulkError, match=r"cannot be written .*expected a folder with room and write permission"):
            run(tmp_path / "file" / "shards")

        def read_only(self: Path, *_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

        monkeypatch.setattr(Path, "rename", read_only)
        with pytest.raises(BulkError, match=r"Read-only file system"):
            run(tmp_path / "b")
        assert list((tmp_path / "b").iterdir()) == []

    def test_a_shard_that_cannot_be_read(self, tmp_path: Path) -> None:
        run(tmp_path)
        (tmp_path / "shard-00000.npy").unlink()
        (tmp_path / "shard-00000.npy").mkdir()
        with pytest.raises(BulkError, match=r"shard-00000\.npy: found that it cannot be read .Is a directory"):
            run(tmp_path)


KILLER = textwrap.dedent(
    """
    import json, os, pathlib, pickle, shutil, signal, sys
    from engine.bulk import files as bulk_files

    out, job = pathlib.Path(sys.argv[1]), pickle.loads(bytes.fromhex(sys.argv[2]))
    os.fsync = lambda descriptor: None  # slow, and of no account when the machine lives on
    WATCHED = ("open", "os.", "fcntl.")
    ORIGIN = {"backend": "none"}

    def go(folder, stop_at=None):
        count = [0]
        def hook(event, _):
            if event.startswith(WATCHED):
                count[0] += 1
                if count[0] == stop_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        if stop_at is not None:
            sys.addaudithook(hook)
        with bulk_files.JobFolder.open(folder, job) as opened:
            todo, damaged = opened.missing()
            if todo:
                opened.record(ORIGIN)
            for shard in todo:
                opened.write(shard, str(shard.seeds).encode() * 100)
            return opened.finish()["sha256"], len(todo), len(damaged)

    expected, point, damaged, kept = go(out / "all")[0], 0, 0, 0
    while True:
        point += 1
        folder = out / str(point)
        pid = os.fork()
        if pid == 0:
            try:
                go(folder, point)
            finally:
                os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        found, todo, broken = go(folder)
        assert found == expected, point
        assert not [name for name in os.listdir(folder) if name.startswith(".")], point
        damaged, kept = damaged + broken, kept + len(job) - todo
        shutil.rmtree(folder)
        if not killed:
            break
    print(json.dumps([point, damaged, kept]))
    """
)


class TestDeath:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_kill_9_before_each_system_call(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", KILLER, str(tmp_path), pickle.dumps(small_job(n=11)).hex()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        points, damaged, kept = json.loads(done.stdout)
        assert points > 30, "the hook must have seen the writing"
        assert damaged == 0, "what is there is whole"
        assert kept > points, "and is kept"

    def test_a_killed_command_is_run_again(self, tmp_path: Path) -> None:
        out = tmp_path / "shards"
        options = ["-n", "40", "--seed", "3", "--steps", "500", "--batch", "4", "--shard-size", "4", "--out", str(out)]
        machine = ["--backend", ANY_BACKEND, "--precision", "f32", "--threads", "1"]
        command = [sys.executable, "-m", "engine", "sample", str(bundle()), *options, *machine]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 120
        while len(list(out.glob("*.sha256"))) < 2 and child.poll() is None and time.monotonic() < give_up:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it must not have been done yet"
        kept = len(list(out.glob("*.sha256")))
        assert 2 <= kept < 10
        assert not (out / "manifest.json").exists()
        again = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
        report = json.loads(again.stdout)
        assert report["shards_made"] == 10 - kept
        job = describe(opened(), 40, seed=3, steps=500, batch=4, shard_size=4)
        assert whole_hash(out) == run(tmp_path / "whole", job).manifest["sha256"] == report["sha256"]


def test_an_error_of_the_engine_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"returned NaN or infinity at step"):
        run(tmp_path, describe(opened("nan"), 4, seed=0), kind="nan")
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_the_maker_frees_its_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(Sampler, "close", lambda self: closed.append(self))
    run(tmp_path)
    assert len(closed) == 1
