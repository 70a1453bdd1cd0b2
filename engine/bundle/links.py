"""The files of a bundle, opened: links may end in its own folder, or in a store that the caller names.

Stores of models keep files by their hash and hand out links: the Hugging Face cache, DVC, a Kubernetes ConfigMap. What a
link leads to is covered by the manifest's SHA-256, but the manifest itself is not, and an untrusted bundle must not make its
reader open what lies elsewhere.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TypeAlias

from engine.bundle.fields import REBUILD, shorten
from engine.errors import ArgumentError, BundleError

Place: TypeAlias = "str | os.PathLike[str]"
AllowLinks: TypeAlias = "bool | Place | Sequence[Place]"
# A folder on the way needs no permission to be listed, where the system can open it without.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)
_FILE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def stores_of(allow_links: AllowLinks) -> tuple[str, ...]:
    """The real folders that `allow_links` names: none for False, the root of all for True; ArgumentError for no folder."""
    if isinstance(allow_links, bool):
        return (os.path.abspath(os.sep),) if allow_links else ()
    named = [allow_links] if isinstance(allow_links, (str, os.PathLike)) else allow_links
    if not isinstance(named, Iterable) or not all(isinstance(store, (str, os.PathLike)) for store in named):
        raise _no_store(allow_links)
    for store in named:
        if not os.path.isdir(store):
            raise _no_store(store)
    return tuple(os.path.realpath(store) for store in named)


def _no_store(found: object) -> ArgumentError:
    shown = os.fspath(found) if isinstance(found, os.PathLike) else found
    return ArgumentError(
        f"allow_links: found {shown!r}, expected a folder where a bundle's links may end, several of them, or True for any "
        "place; check the path"
    )


@contextmanager
def opened(path: Path, size: int | None, stores: Sequence[str]) -> Iterator[BufferedReader]:
    """A regular file of exactly `size` bytes that ends in the bundle or a store; OSError becomes BundleError."""
    try:
        with open(path, "rb", opener=lambda *_: _open(path, stores)) as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                raise BundleError(
                    f"{path}: found {found} bytes, expected {size}: the file is truncated or of another build; {REBUILD}"
                )
            yield file
    except OSError as error:
        raise BundleError(
            f"{path}: found a file that cannot be read ({error.strerror or error}), expected a file of the bundle; "
            f"check its permissions and disk, or {REBUILD}"
        ) from error


def _open(path: Path, stores: Sequence[str]) -> int:
    """The descriptor of what a path leads to, once it is clear that this is a file where one may be."""
    try:
        _check_regular(path, os.stat(path).st_mode)  # before it is opened: some devices act on that
    except FileNotFoundError as error:
        if not path.is_symlink():
            raise
        raise BundleError(
            f"{path}: found a link to {_shown(os.readlink(path))}, where there is nothing, expected one to a file; copy the "
            f"bundle together with what its links lead to (cp -rL), or {REBUILD}"
        ) from error
    real, roots = os.path.realpath(path), (os.path.realpath(path.parent), *stores)
    root = next((root for root in roots if _lies_in(real, root)), None)
    if root is None:
        store = _store_for(path.parent, real, roots)
        option = shlex.join(["--allow-links", store if store.isprintable() else "STORE"])
        raise BundleError(
            f"{path}: found a link to {_shown(real)}, expected one that ends in {' or '.join(roots)}; if that place is to "
            f"be trusted, name it: {option} (in code: allow_links)"
        )
    descriptor = _walk(root, Path(real).relative_to(root).parts)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)  # once more: another may have been put there since
    except BundleError:
        os.close(descriptor)
        raise
    return descriptor


def _walk(root: str, parts: Sequence[str]) -> int:
    """The file root/parts, from folder to folder: a link that is put there meanwhile is not followed."""
    folder = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER | _NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(parts[-1], _FILE | _NO_LINK, dir_fd=folder)
    finally:
        os.close(folder)


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path}: found no regular file, expected one, or a link to one; {REBUILD}")


def _shown(path: str) -> str:
    """A path as a terminal may get it: where a link leads is untrusted text."""
    return path if path.isprintable() else shorten(path)


def _lies_in(path: str, root: str) -> bool:
    return path != root and os.path.commonpath([path, root]) == root


def _store_for(folder: Path, real: str, roots: Sequence[str]) -> str:
    """The folder above all that the links of a bundle lead out of it to, so that one option is enough."""
    try:
        ends = [os.path.realpath(entry.path) for entry in os.scandir(folder) if entry.is_symlink()]
    except PermissionError:  # to list the folder; its files may be opened all the same
        ends = []
    outside = [os.path.dirname(end) for end in ends if not any(_lies_in(end, root) for root in roots)]
    common = os.path.commonpath([os.path.dirname(real), *outside])
    return common if common != os.path.dirname(common) else os.path.dirname(real)
