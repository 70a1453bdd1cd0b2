"""A bulk job: the images of n seeds in a row, cut into shards that depend on nothing but the job itself.

Sample i has seed + i, shard k holds samples k * shard_size and on, and a shard is computed in pieces of `batch` images: a
runtime may round differently in another batch, so the pieces are part of the job too. Whoever makes a shard, in
whichever order and on however many threads, makes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.argument_checks import check_integer
from engine.augmentation import checked_level
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.manifest import Manifest, parse_manifest
from engine.bundle.reader import Bundle
from engine.checks import check_free_dimensions, check_inputs, count_of, input_of
from engine.errors import ArgumentError, BulkError, did_you_mean
from engine.pipeline import table_of
from engine.resolve import SETTING_OPTIONS, choose_prior, setting_of
from engine.result import Setting
from engine.solver.noise import listed_seeds
from engine.stages import all_inputs, check_stages, lacks_start, merged, recorded, stage_setting

Inputs = Mapping[str, npt.ArrayLike]
FORMATS = ("npy", "tar")
SHARD_SIZE = 500
SEED_END = 2**64
STAGE_OPTIONS = (*SETTING_OPTIONS, "setting", "noise_level")


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
class Stage:
    """A stage of a cascade after the first: its bundle, as a Job has it, and how it is sampled."""

    bundle: str
    setting: Setting
    noise_level: int | None

    @property
    def options(self) -> dict[str, Any]:
        """As a Cascade takes them."""
        found = {**asdict(self.setting), "noise_level": self.noise_level}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """What decides every byte of a bulk run but for the machine that computes it (see engine/bulk/maker.py).

    bundle    SHA-256 of the bundle's manifest.json, which has that of every other file
    features  SHA-256 of the ONNX model whose output is kept instead of the images; None keeps the images
    inputs    what was given for the bundle's inputs: a number as it is, an array as `digest_of_array` has it
    size, overlap  of images of another size than the bundle's own, as `Sampler` takes them
    stages    of a cascade those after the first, in order; None for a bundle alone
    """

    name: str
    bundle: str
    n: int
    seed: int
    shard_size: int
    batch: int
    format: str
    features: str | None
    inputs: dict[str, int | float | str]
    setting: Setting
    size: tuple[int, int] | None = None
    overlap: float | None = None
    stages: tuple[Stage, ...] | None = None

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
        """Plain values as JSON gives them back, equal exactly where the jobs are."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # a setting's tuples become lists
        return plain


def describe(
    bundle: Bundle,
    n: int | None,
    *,
    seed: int | None = None,
    shard_size: int = SHARD_SIZE,
    batch: int = 64,
    format: str = "npy",
    features: bytes | None = None,
    inputs: Inputs | None = None,
    prior: str | None = None,
    later: Sequence[Bundle] = (),
    stages: Sequence[Mapping[str, Any]] | None = None,
    **setting: Any,
) -> Job:
    """The job that these options describe, all of them checked; `setting` as for `Sampler.sample`. ArgumentError otherwise.

    seed: of sample 0; None draws one, which the job then has. inputs: the bundle's inputs by name, as for `Sampler.sample`;
    what makes the shards is given the same (`Means.inputs`). later: the bundles that go on with the images, as a cascade
    does; inputs are then what any stage takes. stages: the settings and noise levels of those, over what is recorded.
    """
    count = count_of(n)
    if count is None:
        raise ArgumentError("n: found none, expected the number of images of the whole job; say it with -n 50000")
    if format not in FORMATS:
        hint = did_you_mean(str(format), FORMATS)
        raise ArgumentError(f"format: found {format!r}, expected one of {', '.join(FORMATS)}.{hint}")
    manifests = [bundle.manifest, *(one.manifest for one in later)]
    if later:
        check_stages(manifests)
    given = checked_inputs(manifests, inputs or {}, count)
    larger, overlap = bundle.resizing
    return Job(
        name=bundle.manifest.name,
        bundle=digest_of(bundle),
        n=count,
        seed=int.from_bytes(os.urandom(8), "little") if seed is None else _seed(seed),
        shard_size=_at_least_one("shard_size", shard_size),
        batch=_at_least_one("batch", batch),
        format=format,
        features=None if features is None else hashlib.sha256(features).hexdigest(),
        inputs=describe_inputs(given),
        setting=_setting(bundle.manifest, setting, prior, drawn=_draws(bundle.manifest, given)),
        size=larger,
        overlap=overlap,
        stages=_stages(manifests, later, stages) if later else None,
    )


def _stages(
    manifests: Sequence[Manifest], later: Sequence[Bundle], given: Sequence[Mapping[str, Any]] | None
) -> tuple[Stage, ...]:
    """The stages of a cascade after the first, complete; ArgumentError says which one cannot be."""
    if given is not None and len(given) != len(later):
        raise ArgumentError(f"stages: found {len(given)}, expected {len(later)}, one for each stage after the first")
    found = []
    for index, (both, bundle) in enumerate(zip(pairwise(manifests), later, strict=True)):
        own = {} if given is None else given[index]
        try:
            found.append(_stage(*both, bundle, own))
        except ArgumentError as error:
            raise ArgumentError(f"stage {index + 2}: {error}") from error
    return tuple(found)


def _stage(before: Manifest, after: Manifest, bundle: Bundle, own: Mapping[str, Any]) -> Stage:
    if others := [name for name in own if name not in STAGE_OPTIONS]:
        raise ArgumentError(
            f"found {', '.join(others)} of a bulk job, expected options of its setting: {', '.join(STAGE_OPTIONS)}; an "
            "input is one for all stages"
        )
    options = merged(recorded(before, after), dict(own))
    level = options.pop("noise_level", None)
    checked_level(after, level)
    setting = stage_setting(after, options)
    if lacks_start(after, setting):
        raise ArgumentError("found no t_start, expected one, as it starts from an image; give t_start=400, for example")
    table_of(after, after.schedule.schedule(), setting)
    return Stage(digest_of(bundle), setting, level)


def checked_inputs(manifests: Sequence[Manifest], given: Inputs, n: int) -> dict[str, npt.NDArray[Any]]:
    """What a caller gave for the inputs of a bundle, or of all stages, each [n, ...], or [1, ...] where the samples share
    it; ArgumentError otherwise."""
    specs = manifests[0].inputs if len(manifests) == 1 else all_inputs(manifests)
    check_inputs(given, specs, (), "a bulk job")
    arrays = {spec.name: input_of(spec, given[spec.name]) for spec in specs if spec.name in given}
    for spec in specs:
        if spec.name not in arrays and spec.draw is None:
            raise ArgumentError(f"{spec.name}: found nothing, expected {spec}; say it with --input {spec.name}=VALUE")
        count = len(arrays[spec.name]) if spec.name in arrays else 1
        if count not in (1, n):
            raise ArgumentError(
                f"{spec.name}: found {count} samples, expected one, which all share, or {n}, one an image of the whole job; "
                f"make them agree"
            )
    check_free_dimensions(specs, arrays)
    return arrays


def describe_inputs(given: Mapping[str, npt.NDArray[Any]]) -> dict[str, int | float | str]:
    """Inputs in a job's words: equal where their arrays are."""
    return {name: array.item() if array.size == 1 else digest_of_array(array) for name, array in sorted(given.items())}


def digest_of_array(array: npt.NDArray[Any]) -> str:
    """An array's dtype, shape and the SHA-256 of its little-endian bytes, in a line."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return f"{array.dtype.name} {list(array.shape)} SHA-256 {hashlib.sha256(plain.tobytes()).hexdigest()}"


def digest_of(bundle: Bundle) -> str:
    """The SHA-256 of a bundle's manifest, and so of its contents."""
    return hashlib.sha256(manifest_bytes(bundle)).hexdigest()


def manifest_bytes(bundle: Bundle) -> bytes:
    """manifest.json of an open bundle; BulkError when another bundle has taken its place since it was opened."""
    data = bundle.read_manifest()
    if parse_manifest(data, str(bundle.path / MANIFEST_FILE)) != bundle.base.manifest:
        raise BulkError(
            f"{bundle.path}: found another bundle than the one that was opened, expected the same until the job is "
            f"described; start again when the build is done"
        )
    return data


def _setting(manifest: Manifest, given: Mapping[str, Any], prior: str | None, *, drawn: bool) -> Setting:
    """The complete setting: two ways to ask for the same one are the same job."""
    setting = setting_of(manifest, given)
    table_of(manifest, manifest.schedule.schedule(), setting)  # refuses what no table can be made of
    return replace(setting, prior=choose_prior(manifest, prior, draws=drawn))


def _draws(manifest: Manifest, given: Mapping[str, npt.NDArray[Any]]) -> bool:
    return manifest.drawn is not None and manifest.drawn.name not in given


def _seed(value: object) -> int:
    if (listed := listed_seeds(value)) is not None:
        raise ArgumentError(
            f"seed: found a list of {len(listed)}, expected one whole number: sample i of a bulk job has seed + i; give the "
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
