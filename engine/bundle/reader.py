"""Opening a bundle: everything is verified before a native parser sees a byte.

A bundle is a folder: manifest.json and the files it names (graphs, engines, a prior, directions, a vocabulary), flat. Other
files in the folder are ignored (file managers leave some); which links are followed is said in `engine.bundle.links`.
Writing one is `engine.bundle.writer`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

from engine.bundle.canvas import Canvas, Tiling, resized
from engine.bundle.engines import EngineSpec
from engine.bundle.fields import REBUILD, shorten
from engine.bundle.files import MANIFEST_FILE, FileSpec
from engine.bundle.graphs import GraphSpec
from engine.bundle.limits import MAX_MANIFEST_BYTES
from engine.bundle.links import AllowLinks, opened, stores_of
from engine.bundle.manifest import Manifest, parse_manifest
from engine.commands import command
from engine.errors import ArgumentError, BundleError, did_you_mean

CHUNK = 1 << 20
ASIDE = ".aside"  # what a writer calls the old bundle between two renames, where folders cannot be exchanged
OPEN_ATTEMPTS = 20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `path` is its folder; `manifest` holds every checked field; `digest` is the SHA-256 of
    manifest.json, which has that of every other file; `stores` are the folders outside where its links may end; `canvas` is
    there where `manifest` is that of another size."""

    path: Path
    manifest: Manifest
    digest: str
    stores: tuple[str, ...] = ()
    canvas: Canvas | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], allow_links: AllowLinks = False) -> Bundle:
        """Verify the manifest, and size and SHA-256 of every file it names; BundleError names what does not match.

        allow_links: where links in the folder may end beside the folder itself: a store, several, or True for any place.
        A builder may replace the folder meanwhile: then the new bundle is opened, never a mixture of both.
        """
        asked, stores = Path(path), stores_of(allow_links)
        for _ in range(OPEN_ATTEMPTS - 1):
            folder, before = _locate(asked)
            try:
                return cls._verify(folder, stores)
            except BundleError:
                if _locate(asked) == (folder, before):
                    raise
        return cls._verify(_locate(asked)[0], stores)

    @classmethod
    def _verify(cls, folder: Path, stores: tuple[str, ...]) -> Bundle:
        data = read_manifest_file(folder, stores)
        manifest = parse_manifest(data, str(folder / MANIFEST_FILE))
        bundle = cls(folder, manifest, hashlib.sha256(data).hexdigest(), stores)
        for spec in bundle.manifest.files:
            bundle._check(spec)
        return bundle

    def resized(self, size: tuple[int, int] | None, overlap: float | None) -> Bundle:
        """The same bundle for images of this height and width: its graphs run on the whole, or with an `overlap` on windows,
        of which the next one covers that share, 0 to 0.9; itself where neither is given. ArgumentError where that is not
        possible."""
        if size is None and overlap is None:
            return self
        if size is None:
            raise ArgumentError(
                "found overlap alone, expected a size with it: a larger picture is computed in tiles, of which the next one "
                "covers a share. Pass size=(height, width) too."
            )
        manifest, canvas = resized(self.base.manifest, size, overlap)
        return replace(self, manifest=manifest, canvas=canvas)

    @property
    def resizing(self) -> tuple[tuple[int, int] | None, float | None]:
        """The size and the overlap that `resized` was given; None for what it was not."""
        if self.canvas is None:
            return None, None
        height, width = self.manifest.pipeline.image_shape[1:]
        return (height, width), self.tiling.overlap if self.tiling is not None else None

    @property
    def tiling(self) -> Tiling | None:
        """The canvas, where it is cut into windows."""
        return self.canvas if isinstance(self.canvas, Tiling) else None

    @property
    def of_graphs(self) -> Bundle:
        """The bundle of the size that graphs run in: its own where there are windows."""
        return self if self.tiling is None else self.base

    @property
    def base(self) -> Bundle:
        """The bundle of its own size, as it lies on the disk."""
        return self if self.canvas is None else replace(self, manifest=self.canvas.base, canvas=None)

    def read_manifest(self) -> bytes:
        """The bytes of manifest.json as they are now: of another bundle, if this one was replaced meanwhile."""
        return read_manifest_file(self.path, self.stores)

    # ---- graphs ----------------------------------------------------------------------------------

    def spec(self, key: str) -> GraphSpec:
        """The manifest's entry of a graph, by its key; ArgumentError when this bundle has none."""
        graphs = self.manifest.graphs
        if key not in graphs:
            raise ArgumentError(
                f"graph: found {key!r}, expected one of {', '.join(graphs)}, the graphs of {self.path}."
                f"{did_you_mean(key, graphs)}"
            )
        return graphs[key]

    def read_graph(self, key: str) -> bytes:
        """The bytes of a graph, themselves verified: what the disk holds before or after does not matter."""
        return self._read(self.spec(key))

    def map_weights(self, key: str) -> mmap.mmap | None:
        """The file of a graph's large weights, mapped as an engine's; None where the graph has them all inside."""
        spec = self.spec(key).weights
        return None if spec is None else self._map(spec, writable=True)  # OpenVINO takes no other memory

    # ---- engines, prior, directions and vocabulary -----------------------------------------------

    def has_engine(self, backend: str, precision: str, graph: str) -> bool:
        """Whether an engine of a graph was built for this backend in this precision."""
        return self._find_engine(backend, precision, graph) is not None

    def engine(self, backend: str, precision: str, graph: str) -> EngineSpec:
        """The manifest's entry of an engine; BundleError with the command that builds it when there is none."""
        found = self._find_engine(backend, precision, graph)
        if found is None:
            names = ", ".join(engine.name for engine in self.manifest.engines) or "none"
            build = command("build", "CKPT", "--out", self.path, "--backends", backend, "--precision", precision)
            raise BundleError(
                f"{self.path}: found the engines {shorten(names)}, expected {backend} {precision} {graph}; rebuild the "
                f"bundle with: {build}"
            )
        return found

    def read_engine(self, spec: EngineSpec, label: str) -> bytes:
        """The bytes of one file of an engine, themselves verified."""
        return self._read(_labelled(spec, label))

    def map_engine(self, spec: EngineSpec, label: str) -> mmap.mmap:
        """One file of an engine, mapped read-only; what was hashed is the mapping itself, not a file of the same name."""
        return self._map(_labelled(spec, label))

    def read_prior(self) -> bytes | None:
        """The bytes of the fitted prior, themselves verified; None where the bundle has none."""
        return None if self.manifest.prior is None else self._read(self.manifest.prior)

    def read_directions(self) -> bytes | None:
        """The bytes of the fitted directions, themselves verified; None where the bundle has none."""
        return None if self.manifest.directions is None else self._read(self.manifest.directions)

    def read_text(self) -> bytes | None:
        """The bytes of the vocabulary, themselves verified; None where the bundle has none."""
        return None if self.manifest.text is None else self._read(self.manifest.text)

    def chunks(self, spec: FileSpec) -> Iterator[bytes]:
        """The bytes of a file piece by piece, for who copies it and computes its SHA-256 on the way."""
        with self._opened(spec) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def _find_engine(self, backend: str, precision: str, graph: str) -> EngineSpec | None:
        asked = (backend, precision, graph)
        return next((e for e in self.manifest.engines if (e.backend, e.precision, e.graph) == asked), None)

    # ---- files -----------------------------------------------------------------------------------

    def _check(self, spec: FileSpec) -> None:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
        with self._opened(spec) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
        _check_digest(self.path / spec.file, digest.hexdigest(), spec.sha256)

    def _read(self, spec: FileSpec) -> bytes:
        with self._opened(spec) as file:
            data = file.read(spec.size + 1)
        _check_digest(self.path / spec.file, hashlib.sha256(data).hexdigest(), spec.sha256)
        return data

    def _map(self, file: FileSpec, writable: bool = False) -> mmap.mmap:
        """Mapped for this process alone: what is written to it, where it may be, stays there."""
        path = self.path / file.file
        with self._opened(file) as source:
            try:
                # Read ahead at once: the first step would otherwise stop at every page of every layer. What may be written
                # to would be copied then.
                ahead = 0 if writable else getattr(mmap, "MAP_POPULATE", 0)
                prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
                mapped = mmap.mmap(source.fileno(), file.size, flags=mmap.MAP_PRIVATE | ahead, prot=prot)
            except OSError as error:
                raise BundleError(
                    f"{path}: found a file that cannot be mapped ({error.strerror or error}), expected one that can; check "
                    f"the free memory and the disk, or {REBUILD}"
                ) from error
        _check_digest(path, hashlib.sha256(mapped).hexdigest(), file.sha256)
        return mapped

    def _opened(self, spec: FileSpec) -> AbstractContextManager[BufferedReader]:
        return opened(self.path / spec.file, spec.size, self.stores)


def _labelled(spec: EngineSpec, label: str) -> FileSpec:
    if label not in spec.files:
        raise ArgumentError(
            f"label: found {label!r}, expected one of {', '.join(spec.files)}, the files of the engine {spec.name}."
            f"{did_you_mean(label, spec.files)}"
        )
    return spec.files[label]


def read_manifest_file(folder: Path, stores: tuple[str, ...] = ()) -> bytes:
    """The bytes of a folder's manifest.json, cut one byte past the limit; BundleError when there is none."""
    path = folder / MANIFEST_FILE
    if not path.exists() and not path.is_symlink():
        raise BundleError(
            f"{folder}: found a folder without {MANIFEST_FILE}, expected a bundle; give the folder that the "
            f"build wrote, or {REBUILD}"
        )
    with opened(path, None, stores) as file:
        return file.read(MAX_MANIFEST_BYTES + 1)


def _locate(path: Path) -> tuple[Path, tuple[int, ...]]:
    """The folder to read and its identity."""
    for candidate in _candidates(path):
        try:
            found = candidate.stat()
        except (OSError, ValueError) as error:
            problem = error
            continue
        if not stat.S_ISDIR(found.st_mode):
            cure = f"give the folder: {path.parent}" if path.name == MANIFEST_FILE else REBUILD
            raise BundleError(f"{path}: found a file, expected the folder of a bundle; {cure}")
        # The times too: the number of a folder that was just removed is soon another's.
        return candidate, (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
    raise BundleError(
        f"{str(path)!r}: found nothing that can be read ({problem}), expected a bundle folder; check the path, or "
        f"build a bundle with: {command('build', 'CKPT', '--out', 'PATH')}"
    ) from problem


def _candidates(path: Path) -> Iterator[Path]:
    yield path
    # Where folders cannot be exchanged, a writer between its two renames, or dead there, has the old bundle aside...
    yield from hidden_beside(path, ASIDE)
    yield path  # ... or had, and is done by now


def hidden_beside(path: Path, *suffixes: str) -> list[Path]:
    """The hidden folders `.NAME.<16 hex digits><suffix>` beside `path` that writers of a bundle leave."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}({'|'.join(map(re.escape, suffixes))})")
    try:
        with os.scandir(path.parent) as entries:
            return [Path(e.path) for e in entries if pattern.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return []


def _check_digest(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise BundleError(
            f"{path}: found SHA-256 {found}, expected {expected}: the file is damaged or of another build; {REBUILD}"
        )
