"""How is one shard made? A Sampler, perhaps an extractor of features, and a word on what they ran on.

`Maker.origin` names all that the bytes depend on beside the job: engine, backend, precision, versions, and the processor's
instruction sets (of the native engine the one it runs on) or the GPU's kind. Makers of one job must agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import engine
from engine.backends import BY_NAME_ONLY, GPU_BACKENDS, available
from engine.backends.native import backend as native
from engine.bulk.features import Extractor
from engine.bulk.formats import Samples, encode, png_encoder
from engine.bulk.plan import Job, Shard, digest_of, manifest_bytes
from engine.bundle.manifest import MANIFEST_FILE
from engine.bundle.reader import Bundle
from engine.device import context as device
from engine.errors import BulkError
from engine.processor import FEATURES, this_processor
from engine.sampler import Sampler

Tick = Callable[[int], object]
ON_A_GPU = (*GPU_BACKENDS, *BY_NAME_ONLY)


@dataclass(frozen=True)
class Means:
    """What makes the shards: the options of a Sampler, and the model of the features. Threads change no bit."""

    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    features: bytes | None = None


class Maker:
    """Makes shards of one job, one at a time."""

    def __init__(self, job: Job, bundle: Bundle, means: Means) -> None:
        found = digest_of(bundle)
        if found != job.bundle:
            raise BulkError(f"{bundle.path}: found the bundle {found}, expected {job.bundle} as in the job; give that one")
        self.job = job
        self.sampler = Sampler(bundle, means.backend, means.precision, means.threads, max_batch=job.batch)
        size = bundle.manifest.model.image_size
        self.extractor = None if means.features is None else Extractor(means.features, size, self.sampler.threads)
        self.origin = origin_of(job, self.sampler)
        self._options = {name: value for name, value in asdict(job.setting).items() if value is not None}

    def make(self, shard: Shard, tick: Tick | None = None) -> bytes:
        """The file of a shard; tick(m) after each m images."""
        pieces, seeds = [], shard.seeds
        for begin in range(0, shard.n, self.job.batch):
            pieces.append(self._piece(seeds[begin : begin + self.job.batch]))
            if tick is not None:
                tick(len(pieces[-1]))
        return encode(self.job.format, shard, np.concatenate(pieces))

    def _piece(self, seeds: tuple[int, ...]) -> Samples:
        images = self.sampler.sample(seed=seeds, **self._options).images
        return images if self.extractor is None else self.extractor(images)

    def close(self) -> None:
        """Free graphs and buffers."""
        self.sampler.close()


def origin_of(job: Job, sampler: Sampler) -> dict[str, str]:
    """What this sampler's bytes depend on, in words that are equal where the bytes are."""
    backend = sampler.backend
    instructions = " ".join(feature for feature in FEATURES if feature in this_processor().features)
    machine = instructions
    if backend == native.NAME:
        machine = native.instruction_set()
    elif backend in ON_A_GPU:
        machine = "sm{}{}".format(*device.presence()[2][0])
    origin = {
        "engine": engine.__version__,
        "backend": backend,
        "precision": sampler.precision,
        "runtime": engine.__version__ if backend == native.NAME else available()[backend][1],
        "machine": machine,
    }
    if job.features is not None:
        origin["features"] = f"{available()['onnxruntime'][1]} on {instructions}"
    elif job.format == "tar":
        origin["png"] = png_encoder()
    return origin


def pack(bundle: Bundle) -> dict[str, bytes]:
    """Every file of a bundle, verified, so that it can be opened where its folder cannot be reached."""
    files = {MANIFEST_FILE: manifest_bytes(bundle)}
    files |= {spec.file: bundle.read_graph(key) for key, spec in bundle.manifest.graphs.items()}
    for spec in bundle.manifest.engines:
        files |= {file.file: bundle.read_engine(spec, label) for label, file in spec.files.items()}
    prior, data = bundle.manifest.latent_prior, bundle.read_latent_prior()
    return files if prior is None or data is None else files | {prior.file: data}


def unpack(files: Mapping[str, bytes | memoryview], folder: Path) -> Bundle:
    """The bundle of packed files, written into an empty folder and verified again."""
    try:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise BulkError(
            f"{folder}: found that the bundle cannot be unpacked there ({error.strerror}), expected room for "
            f"{sum(map(len, files.values())):,} bytes; free some, or set TMPDIR on that node"
        ) from error
    return Bundle.open(folder)
