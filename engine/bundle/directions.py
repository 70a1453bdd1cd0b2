"""Directions of a drawn input: what moves it from samples without an attribute to samples with it.

    z' = z + s_1 * d_1 + ... + s_k * d_k

A direction is named and scaled by what it was fitted to: strength 1 is the way from the mean of the one to the mean of the
other. Each product and sum is one of float32, in the order of the bundle's directions: the same bits in any language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from engine.argument_checks import Numbers, check_numbers
from engine.bundle.fields import Fields, is_text, refuse, shorten
from engine.bundle.files import MAX_GRAPH_BYTES, FileSpec
from engine.bundle.inputs import InputSpec, read_of_drawn
from engine.bundle.limits import MAX_DIRECTIONS, MAX_STRENGTH
from engine.commands import command
from engine.errors import ArgumentError, BundleError, did_you_mean
from engine.solver.noise import F32

if TYPE_CHECKING:
    from engine.bundle.manifest import Manifest
    from engine.bundle.reader import Bundle

Edits = Mapping[str, Numbers]  # strengths by direction: one of all samples, or one a sample
TENSOR = "directions"
FIT = "fit them again with: " + command("fit-directions", "BUNDLE", "--images", "FILE")


@dataclass(frozen=True)
class DirectionsSpec(FileSpec):
    """Directions of an input by name, and the file that holds them.

    of      SHA-256 of the first graph of `encode`, in whose space they lie
    record  accuracies, images, date; not read by the engine
    """

    size: Annotated[int, Fields.integer, 1, MAX_GRAPH_BYTES]
    input: Annotated[str, Fields.choice, "drawn"]
    names: Annotated[tuple[str, ...], parse_names]
    of: Annotated[str, Fields.sha256]
    record: Annotated[dict[str, Any], Fields.free]


@dataclass(frozen=True, eq=False)
class Directions:
    """vectors: float32 [K, D], one a name."""

    names: tuple[str, ...]
    vectors: F32

    def move(self, z: F32, edits: Edits) -> F32:
        """z [N, ...] moved by each strength, of all samples or of each, along its direction, as an array of its own."""
        moved = z.reshape(len(z), -1).copy()
        for name, vector in zip(self.names, self.vectors, strict=True):
            strengths = np.broadcast_to(np.asarray(edits.get(name, 0.0), np.float32), len(z))
            there = strengths != 0
            moved[there] += strengths[there, None] * vector
        return moved.reshape(z.shape)


def parse_names(fields: Fields, key: str) -> tuple[str, ...]:
    """Different printable texts."""
    expected = f"a list of 1..{MAX_DIRECTIONS} different printable texts"
    names = fields.items(key, expected)
    if not all(is_text(name) for name in names) or len(set(names)) < len(names) or len(names) > MAX_DIRECTIONS:
        fields.refuse(key, expected)
    return tuple(names)


def parse_directions(top: Fields, inputs: tuple[InputSpec, ...]) -> DirectionsSpec | None:
    """The field `directions`, which may be null."""
    return read_of_drawn(DirectionsSpec, top, "directions", inputs)


def check_directions(manifest: Manifest, where: str) -> None:
    """Refuse directions in the space of another encoder than the bundle's: they would mean nothing here."""
    if manifest.directions is not None and manifest.directions.of != encoder_digest(manifest):
        found = encoder_digest(manifest)
        expected = f"{found}, the SHA-256 of the first graph of encode" if found else "null: the pipeline encodes nothing"
        refuse(where, "directions.of", manifest.directions.of, expected)


def encoder_digest(manifest: Manifest) -> str | None:
    """The SHA-256 of the graph whose values directions are fitted to, None without one."""
    calls = manifest.pipeline.encode
    return manifest.graphs[calls[0].graph].sha256 if calls else None


def read_directions(bundle: Bundle) -> Directions | None:
    """The directions of a bundle, None where it has none; BundleError when the file is not what the manifest says."""
    spec, data = bundle.manifest.directions, bundle.read_directions()
    if spec is None or data is None:
        return None
    drawn = bundle.manifest.drawn
    assert drawn is not None, "a manifest with directions has an input that is drawn"
    shape = [len(spec.names), math.prod(int(d) for d in drawn.sample)]
    return Directions(spec.names, _parse(data, shape, str(bundle.path / spec.file)))


def _parse(data: bytes, shape: list[int], where: str) -> F32:
    try:
        entries = dict(deserialize(data))
    except SafetensorError as error:
        _refuse(where, shorten(str(error)), "directions in safetensors", error)
    if list(entries) != [TENSOR]:
        _refuse(where, f"the tensors {shorten(sorted(entries))}", TENSOR)
    entry: dict[str, Any] = entries[TENSOR]
    if entry["dtype"] != "F32" or entry["shape"] != shape:
        found = f"{TENSOR} {entry['dtype']} {entry['shape']}"
        _refuse(where, found, f"F32 {shape}, the names of the manifest and the width of the input")
    vectors: npt.NDArray[np.float32] = np.frombuffer(entry["data"], "<f4").reshape(shape).astype(np.float32)
    if not np.isfinite(vectors).all():
        _refuse(where, f"NaN or infinity in {TENSOR}", "finite numbers")
    return vectors


def _refuse(where: str, found: str, expected: str, cause: BaseException | None = None) -> NoReturn:
    raise BundleError(f"{where}: found {found}, expected {expected}; {FIT}") from cause


def checked_edits(spec: DirectionsSpec | None, given: object) -> dict[str, Numbers]:
    """A caller's {direction: strength, or one a sample}, of at most MAX_STRENGTH either way; ArgumentError otherwise."""
    if not isinstance(given, Mapping):
        raise ArgumentError(f"edits is {given!r}, a {type(given).__name__}; expected strengths by name: {{'NAME': 1.0}}.")
    if spec is None:
        raise ArgumentError(
            "edits: found some, but this bundle holds no directions; expected none. Fit some with: "
            f"{command('fit-directions', 'BUNDLE', '--images', 'FILE')}"
        )
    for name in given:
        if name not in spec.names:
            raise ArgumentError(
                f"edits: found {name!r}, expected some of {', '.join(spec.names)}, the directions of this bundle."
                f"{did_you_mean(str(name), spec.names)}"
            )
    return {name: check_numbers(f"the strength of {name}", s, -MAX_STRENGTH, MAX_STRENGTH) for name, s in given.items()}
