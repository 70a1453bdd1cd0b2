"""The folder of a bulk job, and which of it is finished: every file is whole or not there, whoever dies.

job.json               what the job is and what it runs on; another job is refused
shard-00000.npy        written aside, flushed, renamed; then the same for
shard-00000.npy.sha256 a line as sha256sum writes it, which says that the shard is finished: `sha256sum -c *.sha256`
manifest.json          at the end: every shard's range, seeds, size and SHA-256, and one of the whole, which is that of the
                       lines above in order: `cat shard-*.sha256 | sha256sum`

A lock on the folder, which ends with the process, keeps a second run out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from engine.bulk.job import Job, Shard
from engine.bundle.reader import CHUNK
from engine.bundle.writer import flush_folder, lock_folder, unlock_folder
from engine.errors import BulkError

JOB, MANIFEST = "job.json", "manifest.json"
JOB_FORMAT, MANIFEST_FORMAT, VERSION = "diffusevae-bulk-job", "diffusevae-bulk", 2
_ASIDE = re.compile(r"\..+\.[0-9a-f]{16}\.writing")
_AGAIN = "the shards that are finished are kept: run the same command again"
_OTHER = "choose another --out, or remove the folder"


class JobFolder:
    """The folder of one job, locked while it is open (`with JobFolder.open(...)`)."""

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job
        self._origin: dict[str, str] | None = None
        self._finished: dict[int, tuple[int, str]] = {}  # shard: size, SHA-256

    @classmethod
    @contextmanager
    def open(cls, path: str | os.PathLike[str], job: Job, *, adopt_seed: bool = False) -> Iterator[JobFolder]:
        """Lock the folder, make it if need be, and check that it is this job's; BulkError otherwise.

        adopt_seed: take the seed of the job that the folder holds, for a run whose caller named none.
        """
        folder = Path(path)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(folder)
        if lock is None:
            raise BulkError(
                f"{folder}: found another run writing into it, expected one at a time; wait for it, or choose another --out"
            )
        try:
            with _writing(folder):
                _remove_leftovers(folder)
                recorded = _read_job(folder)
            if recorded is not None and adopt_seed and isinstance(recorded["job"].get("seed"), int):
                job = replace(job, seed=recorded["job"]["seed"])
            opened = cls(folder, job)
            if recorded is not None:
                opened._check("job", recorded["job"], job.as_dict())
                opened._origin = recorded["made_by"]
            yield opened
        finally:
            unlock_folder(lock)

    def record(self, origin: Mapping[str, str]) -> None:
        """Write down what the job runs on, or refuse a maker whose bytes could differ from those that are there."""
        if self._origin is None:
            job = {"format": JOB_FORMAT, "version": VERSION, "job": self.job.as_dict(), "made_by": dict(origin)}
            self._write(JOB, _json(job))
            self._origin = dict(origin)
        self._check("made_by", self._origin, dict(origin))

    def missing(self) -> tuple[list[Shard], list[Shard]]:
        """(shards still to be made, those of them that were there but damaged), every other one hashed and whole."""
        todo, damaged = [], []
        for shard in self.job:
            with _reading(self.path / shard.file):
                state = self._look(shard)
            if state is not True:
                todo.append(shard)
            if state is False:
                damaged.append(shard)
        if todo:
            with _writing(self.path):
                (self.path / MANIFEST).unlink(missing_ok=True)  # it says that all is there
        return todo, damaged

    def _look(self, shard: Shard) -> bool | None:
        """Whether a shard is whole; None where it was never finished."""
        path = self.path / shard.file
        try:
            line = (self.path / f"{shard.file}.sha256").read_bytes()
        except FileNotFoundError:
            return None
        try:
            size, digest = _hash_file(path)
        except FileNotFoundError:
            return False
        if line != _line(shard, digest):
            return False
        self._finished[shard.index] = size, digest
        return True

    def write(self, shard: Shard, data: bytes | memoryview) -> None:
        """Put a shard into the folder; BulkError when the disk refuses, and nothing of it is then there."""
        digest = hashlib.sha256(data).hexdigest()
        self._write(shard.file, data)
        self._write(f"{shard.file}.sha256", _line(shard, digest))
        self._finished[shard.index] = len(data), digest

    def finish(self) -> dict[str, Any]:
        """Write the manifest of a job whose shards are all there, and return it."""
        lines = [_line(shard, self._finished[shard.index][1]) for shard in self.job]
        shards = [
            {
                "file": shard.file,
                "first": shard.first,
                "n": shard.n,
                "seeds": [shard.seed, shard.seeds[-1]],
                "size": self._finished[shard.index][0],
                "sha256": self._finished[shard.index][1],
            }
            for shard in self.job
        ]
        manifest = {
            "format": MANIFEST_FORMAT,
            "version": VERSION,
            "job": self.job.as_dict(),
            "made_by": self._origin,
            "sha256": hashlib.sha256(b"".join(lines)).hexdigest(),
            "shards": shards,
        }
        self._write(MANIFEST, _json(manifest))
        return manifest

    def _write(self, name: str, data: bytes | memoryview) -> None:
        aside = self.path / f".{name}.{secrets.token_hex(8)}.writing"
        with _writing(self.path):
            try:
                with open(aside, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                aside.rename(self.path / name)
                flush_folder(self.path)
            finally:
                aside.unlink(missing_ok=True)

    def _check(self, part: str, found: Any, expected: dict[str, Any]) -> None:
        """Refuse a folder in which a field of the job differs from this run's."""
        there, asked = dict(_flat(part, found)), dict(_flat(part, expected))
        for field in sorted(there.keys() | asked.keys()):
            if there.get(field) != asked.get(field):
                cure = "run on machines that are alike" if part == "made_by" else "give the options of that job"
                raise BulkError(
                    f"{self.path / JOB}, {field}: found {there.get(field)!r} in the folder's job, expected "
                    f"{asked.get(field)!r} as in this run; {cure}, or {_OTHER}"
                )


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested objects."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inside in value.items():
        yield from _flat(f"{name}.{key}", inside)


def _line(shard: Shard, digest: str) -> bytes:
    return f"{digest}  {shard.file}\n".encode()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _hash_file(path: Path) -> tuple[int, str]:
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(CHUNK))
    with open(path, "rb") as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return size, digest.hexdigest()


def _remove_leftovers(folder: Path) -> None:
    """What killed runs wrote aside and never renamed; the lock says that no other run writes now."""
    for name in os.listdir(folder):
        if _ASIDE.fullmatch(name):
            (folder / name).unlink(missing_ok=True)


def _read_job(folder: Path) -> dict[str, Any] | None:
    """The job that a folder holds, None for an empty one; BulkError for anything else."""
    path = folder / JOB
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        others = sorted(os.listdir(folder))
        if others:
            _refuse_folder(folder, f"{others[0]!r} and no {JOB}", "an empty folder or one of this job")
        return None
    except (ValueError, RecursionError) as error:
        _refuse_folder(path, f"no JSON ({error})", "a job's description")
    if not isinstance(raw, dict) or raw.get("format") != JOB_FORMAT or raw.get("version") != VERSION:
        _refuse_folder(path, "something else", f"a job's description, {JOB_FORMAT} of version {VERSION}")
    if not isinstance(raw.get("job"), dict) or not isinstance(raw.get("made_by"), dict):
        _refuse_folder(path, f"the keys {', '.join(sorted(raw))}", "format, version, job and made_by")
    return raw


def _refuse_folder(where: Path, found: str, expected: str) -> NoReturn:
    raise BulkError(f"{where}: found {found}, expected {expected}; {_OTHER}")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BulkError(
            f"{folder}: found that it cannot be written ({error.strerror or error}), expected a folder with room and write "
            f"permission; {_AGAIN} when there is"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BulkError(
            f"{path}: found that it cannot be read ({error.strerror or error}), expected a shard; check the disk and its "
            f"permissions; {_AGAIN} then"
        ) from error

