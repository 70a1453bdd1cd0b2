"""What is a bulk job? The images of n seeds in a row, cut into shards that depend on nothing but the job itself.

Sample i has seed + i, shard k holds samples k * shard_size and on, and a shard is computed in pieces of `batch` images: a
runtime may round differently in another batch, so the pieces are part of the job too. Whoever makes a shard, in
whichever order and on however many threads, makes the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.bundle.manifest import MANIFEST_FILE, Manifest, parse_manifest
from engine.bundle.prior import resolve_prior
from engine.bundle.reader import Bundle, read_manifest_file
from engine.checks import count_of, resolve_setting
from engine.errors import ArgumentError, BulkError, did_you_mean
from engine.result import Setting
from engine.solver.feeds import setting_feeds
from engine.solver.schedule import check_integer

FORMATS = ("npy", "tar")
SHARD_SIZE = 500
SEED_END = 2**64


@dataclass(frozen=True)
class Shard:
    """Samples first .. first + n - 1 of a job, the first of them with the seed `seed`."""

    index: int
    first: int
    n: int
    seed: int
    file: str

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of its samples, in order."""
        return tuple((self.seed + i) % SEED_END for i in range(self.n))


@dataclass(frozen=True)
class Job:
    """What decides every byte of a bulk run but for the machine that computes it (see engine/bulk/maker.py).

    bundle    SHA-256 of the bundle's manifest.json, which has that of every other file
    features  SHA-256 of the ONNX model whose output is kept instead of the images; None keeps the images
    """

    name: str
    bundle: str
    n: int
    seed: int
    shard_size: int
    batch: int
    format: str
    features: str | None
    setting: Setting

    def __len__(self) -> int:
        """The number of shards."""
        return -(-self.n // self.shard_size)

    def __iter__(self) -> Iterator[Shard]:
        return (self.shard(index) for index in range(len(self)))

    def shard(self, index: int) -> Shard:
        """Shard `index`; ArgumentError where there is none."""
        if not 0 <= index < len(self):
            raise ArgumentError(f"shard: found {index}, expected 0 .. {len(self) - 1}; see len(job)")
        first = index * self.shard_size
        digits = max(5, len(str(len(self) - 1)))
        file = f"shard-{index:0{digits}d}.{self.format}"
        return Shard(index, first, min(self.shard_size, self.n - first), (self.seed + first) % SEED_END, file)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, equal exactly where the jobs are."""
        return asdict(self)


def plan(
    bundle: Bundle,
    n: int | None,
    *,
    seed: int | None = None,
    shard_size: int = SHARD_SIZE,
    batch: int = 64,
    format: str = "npy",
    features: bytes | None = None,
    prior: str | None = None,
    **setting: Any,
) -> Job:
    """The job that these options describe, all of them checked; `setting` as for `Sampler.sample`. ArgumentError otherwise.

    seed: of sample 0; None draws one, which the job then has.
    """
    count = count_of(n)
    if count is None:
        raise ArgumentError("n: found none, expected the number of images of the whole job; say it with -n 50000")
    if format not in FORMATS:
        hint = did_you_mean(str(format), FORMATS)
        raise ArgumentError(f"format: found {format!r}, expected one of {', '.join(FORMATS)}.{hint}")
    return Job(
        name=bundle.manifest.name,
        bundle=digest_of(bundle),
        n=count,
        seed=int.from_bytes(os.urandom(8), "little") if seed is None else _seed(seed),
        shard_size=_at_least_one("shard_size", shard_size),
        batch=_at_least_one("batch", batch),
        format=format,
        features=None if features is None else hashlib.sha256(features).hexdigest(),
        setting=_setting(bundle.manifest, setting, prior),
    )


def digest_of(bundle: Bundle) -> str:
    """The SHA-256 of a bundle's manifest, and so of its contents."""
    return hashlib.sha256(manifest_bytes(bundle)).hexdigest()


def manifest_bytes(bundle: Bundle) -> bytes:
    """manifest.json of an open bundle; BulkError when another bundle has taken its place since it was opened."""
    data = read_manifest_file(bundle.path)
    if parse_manifest(data, str(bundle.path / MANIFEST_FILE)) != bundle.manifest:
        raise BulkError(
            f"{bundle.path}: found another bundle than the one that was opened, expected the same until the job is planned; "
            f"start again when the build is done"
        )
    return data


def _setting(manifest: Manifest, given: Mapping[str, Any], prior: str | None) -> Setting:
    """The complete setting: two ways to ask for the same one are the same job."""
    setting_feeds(manifest, given)  # derives the step table, and so refuses what no table can be made of
    setting = resolve_setting(asdict(manifest.defaults), manifest.variance, given)
    if manifest.model.z_dim is None:
        return replace(setting, prior=prior)  # a prior without latents: the Sampler says what is wrong with it
    return replace(setting, prior=resolve_prior(prior, manifest.latent_prior is not None))


def _seed(value: object) -> int:
    if isinstance(value, (list, tuple)):
        raise ArgumentError(
            f"seed: found a list of {len(value)}, expected one whole number: sample i of a bulk job has seed + i; give the "
            f"first"
        )
    seed = check_integer("seed", value)
    if not 0 <= seed < SEED_END:
        raise ArgumentError(f"seed is {seed}; expected 0 .. 2**64 - 1: take it modulo 2**64")
    return seed


def _at_least_one(name: str, value: object) -> int:
    number = check_integer(name, value)
    if number < 1:
        raise ArgumentError(f"{name} is {number}; expected at least 1 image")
    return number
