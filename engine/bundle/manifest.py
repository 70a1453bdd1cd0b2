"""What does a bundle say about itself? The manifest as typed values, and every reason for which one is refused.

Unknown keys are refused at every level but the ones that belong to somebody else (`model.unet`, `model.vae`,
`built_with`, an engine's `made_with`, `options` and `record`), so that a misspelt field is never taken for an absent one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.bundle.engines import (
    ENGINE_FILES,
    ENGINE_PRECISIONS,
    EngineSpec,
    LatentPriorSpec,
    check_engine_sources,
    parse_engines,
    parse_latent_prior,
    parse_versions,
)
from engine.bundle.fields import FILE_NAME, REBUILD, Fields, parse_json, refuse
from engine.bundle.files import MANIFEST_FILE, FileSpec
from engine.bundle.graphs import (
    GRAPH_PRECISIONS,
    SAMPLER,
    GraphSpec,
    Parity,
    TensorSpec,
    contract,
    graph_key,
    parse_graphs,
    roles_of,
)
from engine.bundle.model import (
    CONDITIONAL_ROLES,
    UNCONDITIONAL_ROLES,
    Defaults,
    Model,
    ScheduleSpec,
    Source,
    parse_defaults,
    parse_model,
    parse_schedule,
    parse_source,
)
from engine.errors import BundleError
from engine.solver.table import VARIANCES

__all__ = [
    "CONDITIONAL_ROLES", "ENGINE_FILES", "ENGINE_PRECISIONS", "FORMAT", "FORMAT_VERSION", "GRAPH_PRECISIONS",
    "MANIFEST_FILE", "MAX_MANIFEST_BYTES", "SAMPLER", "UNCONDITIONAL_ROLES", "Defaults", "EngineSpec", "FileSpec",
    "GraphSpec", "LatentPriorSpec", "Manifest", "Model", "Parity", "ScheduleSpec", "Source", "TensorSpec",
    "check_manifest", "contract", "graph_key", "parse_manifest", "roles_of",
]  # fmt: skip

FORMAT = "diffusevae-bundle"
FORMAT_VERSION = 2
MAX_MANIFEST_BYTES = 4 * 2**20
FAMILIES = ("diffusevae",)


@dataclass(frozen=True)
class Manifest:
    """A manifest that passed every check; `graphs` by key: `denoiser`, `denoiser.fp16`, `sampler`, ... (`graph_key`)."""

    name: str
    family: str
    model: Model
    schedule: ScheduleSpec
    variance: str
    defaults: Defaults
    source: Source
    backends: tuple[str, ...]
    graphs: dict[str, GraphSpec]
    latent_prior: LatentPriorSpec | None
    engines: tuple[EngineSpec, ...]
    built_with: dict[str, str]

    @property
    def roles(self) -> tuple[str, ...]:
        """The graphs that this kind of model needs, which are there in float32."""
        return roles_of(self.model)

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """Every file of the bundle beside the manifest itself."""
        return tuple(spec for _, spec in self._named_files())

    def _named_files(self) -> Iterator[tuple[str, FileSpec]]:
        for key, graph in self.graphs.items():
            yield f"graphs.{key}", graph
        if self.latent_prior is not None:
            yield "latent_prior", self.latent_prior
        for index, engine in enumerate(self.engines):
            for label, file in engine.files.items():
                yield f"engines[{index}].files.{label}", file

    def check_file_names(self, where: str) -> None:
        """Refuse two entries with one file, also where they differ in case alone: some disks know no case."""
        seen: set[str] = set()
        for field, spec in self._named_files():
            if spec.file.lower() in seen:
                refuse(where, f"{field}.file", spec.file, "a file of its own for each entry")
            seen.add(spec.file.lower())


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Check the bytes of a manifest.json; BundleError names the field, what was found and what was expected."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{where}: found a manifest of {len(data)} bytes or more, expected at most {MAX_MANIFEST_BYTES}; {REBUILD}"
        )
    return check_manifest(parse_json(data, where), where)


def check_manifest(raw: object, where: str, *, hashed: bool = True) -> Manifest:
    """Check a manifest that is already parsed. The version is looked at before any field whose meaning it decides.

    hashed: whether every SHA-256 is there already, so that engines can be held against what they were built from.
    """
    top = Fields(raw, where, "")
    top.choice("format", (FORMAT,))
    _check_version(top.integer("format_version", 0, 2**31), where)
    model = parse_model(top.object("model"))
    schedule = parse_schedule(top.object("schedule"))
    manifest = Manifest(
        name=top.text("name"),
        family=top.choice("family", FAMILIES),
        model=model,
        schedule=schedule,
        variance=top.choice("variance", VARIANCES),
        defaults=parse_defaults(top.object("defaults"), schedule.T),
        source=parse_source(top.object("source")),
        backends=_backends(top),
        graphs=parse_graphs(top.object("graphs"), model),
        latent_prior=parse_latent_prior(top, model),
        engines=parse_engines(top, model),
        built_with=parse_versions(top.object("built_with")),
    )
    top.done()
    manifest.check_file_names(where)
    if hashed:
        check_engine_sources(manifest.engines, manifest.graphs, manifest.source, where)
    return manifest


def _check_version(version: int, where: str) -> None:
    if version == FORMAT_VERSION:
        return
    newer = version > FORMAT_VERSION
    cure = "upgrade the engine with: pip install --upgrade diffusevae-engine" if newer else REBUILD
    raise BundleError(
        f"{where}, format_version: found {version}, expected {FORMAT_VERSION}: the bundle was written by "
        f"{'a newer' if newer else 'an older'} engine; {cure}"
    )


def _backends(top: Fields) -> tuple[str, ...]:
    expected = "a list of different backend names"
    names = top.items("backends", expected)
    # Any name is let through, not only those of this engine: a bundle may hold graphs for a runtime that a
    # later engine, or the C++ one, knows.
    if any(type(name) is not str or not FILE_NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
        top.refuse("backends", expected)
    return tuple(names)
