"""The maker of shards: a Sampler or a Cascade, perhaps an extractor of features, and a word on what they run on.

`Maker.origin` names all that the bytes depend on beside the job: engine, backend, precision, versions, and the processor's
instruction sets (of the native engine the one it runs on) or the GPU's kind. Makers of one job must agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import engine
from engine.backends import BACKENDS, available, backend_class
from engine.backends.native.graph import NAME as NATIVE
from engine.backends.native.isa import instruction_set
from engine.bulk.features import Extractor
from engine.bulk.formats import Samples, encode, png_encoder
from engine.bulk.job import Inputs, Job, Shard, checked_inputs, describe_inputs, digest_of, manifest_bytes
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.reader import Bundle
from engine.cascade import Cascade
from engine.device import context as device
from engine.errors import BulkError
from engine.processor import FEATURES, this_processor
from engine.sampler import Sampler

Tick = Callable[[int], object]
BETWEEN = "; "  # the origins of a cascade's stages, where they differ
ON_DEVICE = tuple(name for name in BACKENDS if backend_class(name).ON_DEVICE)
ON_A_GPU = (*ON_DEVICE, *(name for name in BACKENDS if backend_class(name).BY_NAME_ONLY))


@dataclass(frozen=True)
class Means:
    """What makes the shards: the options of a Sampler, the model of the features, what was given for the bundle's inputs.

    Threads change no bit.
    """

    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    features: bytes | None = None
    inputs: Inputs = field(default_factory=dict)


class Maker:
    """Makes shards of one job, one at a time."""

    def __init__(self, job: Job, bundles: Bundle | Sequence[Bundle], means: Means) -> None:
        """bundles: one, or all stages of a cascade."""
        bundle, *later = [bundles] if isinstance(bundles, Bundle) else bundles
        wanted = [job.bundle, *(stage.bundle for stage in job.stages or ())]
        if len(wanted) != 1 + len(later):
            raise BulkError(f"bundles: found {1 + len(later)}, expected {len(wanted)} as in the job; give one each stage")
        for one, expected in zip((bundle, *later), wanted, strict=True):
            if (found := digest_of(one)) != expected:
                raise BulkError(f"{one.path}: found the bundle {found}, expected {expected} as in the job; give that one")
        self.job, bundle = job, bundle.base.resized(job.size, job.overlap)
        manifests = [one.manifest for one in (bundle, *later)]
        self._inputs = checked_inputs(manifests, means.inputs, job.n)
        described = describe_inputs(self._inputs)
        if described != job.inputs:
            raise BulkError(f"inputs: found {described}, expected {job.inputs} as in the job; give the same to its Means")
        machine = (means.backend, means.precision, means.threads)
        self.sampler: Sampler | Cascade = (
            Cascade([bundle, *later], *machine, max_batch=job.batch)
            if later
            else Sampler(bundle, *machine, max_batch=job.batch)
        )
        shape = manifests[-1].pipeline.image_shape
        self.extractor = None if means.features is None else Extractor(means.features, shape, self.sampler.threads)
        self.origin = origin_of(job, self.sampler)
        self._options = {name: value for name, value in asdict(job.setting).items() if value is not None}
        if job.stages is not None:
            self._options["stages"] = [stage.options for stage in job.stages]

    def make(self, shard: Shard, tick: Tick | None = None) -> bytes:
        """The file of a shard; tick(m) after each m images."""
        pieces = []
        for begin in range(0, shard.n, self.job.batch):
            pieces.append(self._piece(shard, begin, min(begin + self.job.batch, shard.n)))
            if tick is not None:
                tick(len(pieces[-1]))
        return encode(self.job.format, shard, np.concatenate(pieces))

    def _piece(self, shard: Shard, begin: int, end: int) -> Samples:
        """Samples begin .. end of a shard."""
        rows = slice(shard.first + begin, shard.first + end)
        inputs: dict[str, Any] = {name: array[0] if len(array) == 1 else array[rows] for name, array in self._inputs.items()}
        images = self.sampler.sample(seed=shard.seeds[begin:end], **inputs, **self._options).images
        return images if self.extractor is None else self.extractor(images)

    def close(self) -> None:
        """Free graphs and buffers."""
        self.sampler.close()


def origin_of(job: Job, sampler: Sampler | Cascade) -> dict[str, str]:
    """What this sampler's bytes depend on, in words that are equal where the bytes are; of a cascade those of each stage."""
    instructions = " ".join(feature for feature in FEATURES if feature in this_processor().features)
    stages = [_origin(stage, instructions) for stage in (sampler.samplers if isinstance(sampler, Cascade) else (sampler,))]
    names = dict.fromkeys(name for stage in stages for name in stage)
    origin = {name: BETWEEN.join(dict.fromkeys(stage[name] for stage in stages if name in stage)) for name in names}
    if job.features is not None:
        origin["features"] = f"{available()['onnxruntime'][1]} on {instructions}"
    elif job.format == "tar":
        origin["png"] = png_encoder()
    return origin


def _origin(sampler: Sampler, instructions: str) -> dict[str, str]:
    """That of one bundle."""
    backend, machine = sampler.backend, instructions
    if backend == NATIVE:
        machine = instruction_set()
    elif backend in ON_A_GPU:
        machine = "sm{}{}".format(*device.presence()[2][0])
    origin = {
        "engine": engine.__version__,
        "backend": backend,
        "precision": sampler.precision,
        "runtime": engine.__version__ if backend == NATIVE else available()[backend][1],
        "machine": machine,
    }
    others = {entry.runs_on[0] for entry in sampler.bundle.manifest.engines if entry.backend == backend and entry.runs_on}
    if others:
        origin["shared"] = f"{', '.join(available()[name][1] for name in sorted(others))} on {instructions}"
    return origin


def pack(bundle: Bundle) -> dict[str, bytes]:
    """Every file of a bundle, verified, so that it can be opened where its folder cannot be reached."""
    files = {MANIFEST_FILE: manifest_bytes(bundle)}
    files |= {spec.file: bundle.read_graph(key) for key, spec in bundle.manifest.graphs.items()}
    weights = {graph.weights.file: bundle.map_weights(key) for key, graph in bundle.manifest.graphs.items() if graph.weights}
    files |= {name: bytes(mapped) for name, mapped in weights.items() if mapped is not None}
    for spec in bundle.manifest.engines:
        files |= {file.file: bundle.read_engine(spec, label) for label, file in spec.files.items()}
    manifest = bundle.manifest
    others = (
        (manifest.prior, bundle.read_prior()),
        (manifest.directions, bundle.read_directions()),
        (manifest.text, bundle.read_text()),
    )
    return files | {spec.file: data for spec, data in others if spec is not None and data is not None}


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
