"""Writing a bundle: whole or not at all, whatever dies or writes at the same time.

The new bundle is written into a hidden folder beside its destination, flushed, and then exchanged with what was there
in one rename (`renameat2(RENAME_EXCHANGE)`). Where the system has no such call the old bundle is first renamed to
`.NAME.*.aside`: a death between the two renames leaves it there, where `Bundle.open` still finds it.
A writer holds a lock on its hidden folder, so that the next writer knows which folders the dead have left.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

if sys.platform != "win32":
    import fcntl

from engine.bundle.fields import shorten
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.manifest import FORMAT, check_manifest
from engine.bundle.reader import ASIDE, CHUNK, hidden_beside, read_manifest_file
from engine.errors import BundleError
from engine.places import check_folder

Content: TypeAlias = "bytes | Path | Iterable[bytes | memoryview]"
WRITING = ".writing"
ATTEMPTS = 100
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# What renameat2 answers where kernel, container or file system cannot exchange.
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP)
# What flock answers on some network disks.
_NO_LOCKS = (errno.ENOSYS, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP)


def write_bundle(path: str | os.PathLike[str], manifest: Mapping[str, Any], files: Mapping[str, Content]) -> None:
    """Write a bundle under `path`, in one step for every reader.

    manifest: as in manifest.json; `size` and `sha256` of every file (graphs, prior, directions, vocabulary, engines) are
    filled in where they are missing.
    files: {file name: content, whole or in pieces, or a path to copy from}, exactly the files that the manifest names.
    An older bundle under `path` is replaced; any other folder with content is not. BundleError when the manifest is
    not valid, a file is missing or differs from what the manifest says, or the disk refuses.
    """
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_replaceable(target)
        with replacing(target) as folder:
            _fill(folder, target, manifest, files)
            _check_replaceable(target)  # again: writing took a while
    except OSError as error:
        raise BundleError(
            f"{target}: found that the bundle cannot be written ({error.strerror or error}: {error.filename}), expected "
            f"a folder with room and write permission; the bundle that was there, if any, is whole"
        ) from error


def check_place(path: str | os.PathLike[str], nbytes: int = 0) -> None:
    """Refuse, before the work is done, a place where `write_bundle` would refuse to write; nbytes: of all files, about.

    ArgumentError where nothing can be written, BundleError where something else would be replaced.
    """
    check_folder(path)
    target = Path(os.path.realpath(path))
    check_folder(target.parent, nbytes)  # where the hidden folder will be
    _check_replaceable(target)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target` to be filled; at the end it has the target's name, in one step for readers.

    What was under that name is removed then; nothing happens to it when the block raises. `target`: without links.
    """
    remove_stale(target)
    with _hidden_folder(target) as folder:
        yield folder
        flush_folder(folder)
        _swap_in(folder, target)
        flush_folder(target.parent)
    # Only now: what another writer put aside may be the folder that this one wrote, and held locked until here.
    remove_stale(target)


def plain_manifest(manifest: Mapping[str, Any], target: Path) -> dict[str, Any]:
    """The manifest as plain JSON values, in a copy that may be changed."""
    try:
        return dict(json.loads(json.dumps(manifest, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{target}: found a manifest that JSON cannot hold ({error}), expected plain finite values; convert them"
        ) from error


def _entries(raw: dict[str, Any], files: Mapping[str, Content], target: Path) -> list[dict[str, Any]]:
    """The entries with a file of a manifest that is valid but for the sizes and hashes that are still to be found."""
    trial = json.loads(json.dumps(raw))
    for entry in _file_entries(trial):
        entry.update({"size": 1, "sha256": "0" * 64} | entry)
    named = {spec.file for spec in check_manifest(trial, str(target / MANIFEST_FILE), hashed=False).files}
    if named != set(files):
        raise BundleError(
            f"{target}: found the files {shorten(sorted(files))}, expected exactly those that the manifest names: "
            f"{shorten(sorted(named))}; hand over one file for each entry"
        )
    return _file_entries(raw)


def _file_entries(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Wherever a manifest names a file, if it has the shape of one; what has not, `check_manifest` refuses."""
    engines = raw.get("engines")
    holders = [engine.get("files") for engine in engines if isinstance(engine, dict)] if isinstance(engines, list) else []
    entries = [raw.get("prior"), raw.get("directions"), raw.get("text")]
    for holder in (raw.get("graphs"), *holders):
        entries += holder.values() if isinstance(holder, dict) else []
    entries += [entry["weights"] for entry in entries if isinstance(entry, dict) and "weights" in entry]
    return [entry for entry in entries if isinstance(entry, dict)]


def _fill(folder: Path, target: Path, manifest: Mapping[str, Any], files: Mapping[str, Content]) -> None:
    """Write the files, then the manifest that describes exactly what was written."""
    raw = plain_manifest(manifest, target)
    for entry in _entries(raw, files, target):
        size, sha256 = _write_file(folder / entry["file"], files[entry["file"]])
        for key, value in (("size", size), ("sha256", sha256)):
            if entry.setdefault(key, value) != value:
                raise BundleError(
                    f"{target / entry['file']}: found {key} {value}, expected {entry[key]!r} as the manifest says; "
                    f"hand over the file that the manifest describes, or leave {key} out"
                )
    check_manifest(raw, str(target / MANIFEST_FILE))
    write_manifest(folder / MANIFEST_FILE, raw)


def write_manifest(path: Path, raw: Mapping[str, Any]) -> None:
    """Write and flush a manifest that was checked, as a file that is not there yet."""
    _write_file(path, (json.dumps(raw, indent=1, ensure_ascii=False) + "\n").encode())


def _write_file(path: Path, content: Content) -> tuple[int, str]:
    """Write and flush one file; its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in _chunks(content):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _chunks(content: Content) -> Iterator[bytes | memoryview]:
    if not isinstance(content, Path):
        yield from [content] if isinstance(content, bytes) else content
        return
    try:
        with open(content, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise BundleError(
            f"{content}: found a file that cannot be read ({error.strerror}), expected one to copy"
        ) from error


def flush_folder(folder: Path) -> None:
    """Make the names inside a folder durable, where folders can be opened."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_replaceable(target: Path) -> None:
    """Refuse to replace anything but nothing, an empty folder, or a bundle with no foreign file in it."""
    for _ in range(ATTEMPTS):
        before = _identity(target)
        try:
            return _check_folder(target)
        except (BundleError, FileNotFoundError):
            # Another writer that replaced the folder while it was being looked at is no reason to refuse.
            if _identity(target) == before:
                raise
    raise _too_many_writers(target)


def _identity(target: Path) -> tuple[int, int, int] | None:
    """What tells whether a folder is still the same one; None where there is nothing."""
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _too_many_writers(target: Path) -> BundleError:
    return BundleError(
        f"{target}: found other writers replacing it {ATTEMPTS} times in a row, expected one build at a time; "
        f"build again when they are done"
    )


def _check_folder(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise BundleError(f"{target}: found a file, expected a folder or nothing; choose another --out, or remove it")
    names = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(target)}
    if not names:
        return
    cure = "choose another --out, or move it away first"
    text = read_manifest_file(target) if names.get(MANIFEST_FILE) else b""
    if f'"{FORMAT}"'.encode() not in text:
        raise BundleError(f"{target}: found a folder that is not a bundle, expected a bundle to replace; {cure}")
    for name, regular in names.items():
        # Looked up in the text, so that a manifest too damaged to parse, or of another version, can be replaced too.
        known = name == MANIFEST_FILE or name.endswith(".onnx") or json.dumps(name).encode() in text
        if not (regular and known):
            raise BundleError(
                f"{target}: found {name!r} beside the files of the old bundle, expected nothing that replacing it "
                f"would destroy; {cure}"
            )


@contextmanager
def _hidden_folder(target: Path) -> Iterator[Path]:
    """A new locked folder beside the target; afterwards what bears its name (by then the old bundle) is removed."""
    folder, lock = _make_locked(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed now, the next writer tries again
        unlock_folder(lock)


def _make_locked(target: Path) -> tuple[Path, int]:
    for _ in range(ATTEMPTS):
        folder = _hidden_name(target, WRITING)
        folder.mkdir()
        lock = lock_folder(folder)
        if lock is not None:
            return folder, lock
        # A cleaning writer took it in the instant before it was locked.
        shutil.rmtree(folder, ignore_errors=True)
    raise BundleError(
        f"{target}: found that no folder beside it can be locked, expected a folder with write permission; choose "
        f"another --out"
    )


def _hidden_name(target: Path, suffix: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(8)}{suffix}"


def lock_folder(folder: Path) -> int | None:
    """The descriptor that locks a folder; None when another process has it or it is gone, -1 where locks are unknown.

    The lock ends with the process, however that ends.
    """
    if sys.platform == "win32":
        return -1
    descriptor = -1
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(folder), os.fstat(descriptor)):
            return descriptor
    except (FileNotFoundError, BlockingIOError, PermissionError):
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        unlock_folder(descriptor)
        return -1
    unlock_folder(descriptor)
    return None


def unlock_folder(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def remove_stale(target: Path) -> None:
    """Remove the hidden folders that dead writers of this bundle left beside it."""
    for folder in hidden_beside(target, WRITING, ASIDE):
        lock = lock_folder(folder)
        if lock is None or lock < 0:
            continue  # its writer lives, or nothing tells
        # An old bundle that was put aside and never replaced is the only copy: readers find it there.
        if folder.suffix == WRITING or target.exists():
            shutil.rmtree(folder, ignore_errors=True)
        unlock_folder(lock)


def _swap_in(folder: Path, target: Path) -> None:
    """Give the new folder the target's name; the old bundle ends under the new folder's name or is gone."""
    for _ in range(ATTEMPTS):
        try:
            folder.rename(target)  # enough when there is nothing there, or an empty folder
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            if not _exchange(folder, target):
                _put_aside(target)
                continue
            return
        except FileNotFoundError:
            continue  # another writer has put the old bundle aside in this instant
    raise _too_many_writers(target)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    flags = ctypes.c_uint(_RENAME_EXCHANGE)
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(b))


def _put_aside(target: Path) -> None:
    """Rename the old bundle to where `Bundle.open` finds it while its name is free; removed once that is taken."""
    target.rename(_hidden_name(target, ASIDE))
