"""Where results go, looked at before the work: of the right kind, writable, and with room."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ArgumentError


def check_file(path: str | os.PathLike[str], nbytes: int = 0, suffixes: Sequence[str] = ()) -> Path:
    """The file to write, with a suffix of these where there are any. ArgumentError where it cannot be written.

    nbytes: what it will hold, by an estimate. Nothing is made or changed.
    """
    target = _named(path)
    if suffixes and target.suffix.lower() not in suffixes:
        raise _refused(target, f"a name ending in {target.suffix or 'no suffix'}", f"one ending in {' or '.join(suffixes)}")
    mode = _mode(target)
    if mode is not None and not stat.S_ISREG(mode):
        raise _refused(target, "a folder" if stat.S_ISDIR(mode) else "a device or pipe", "a file, or a name that is free")
    if mode is not None:
        try:
            os.close(os.open(target, os.O_WRONLY))
        except OSError as error:
            raise unwritable(target, error) from error
    _check_room(target, nbytes)
    return target


def check_folder(path: str | os.PathLike[str], nbytes: int = 0) -> Path:
    """The folder to write into, there already or to be made. ArgumentError where nothing can be written into it.

    nbytes: what will be written, by an estimate. Nothing is made or changed.
    """
    target = _named(path)
    mode = _mode(target)
    if mode is not None and not stat.S_ISDIR(mode):
        raise _refused(target, "a file", "a folder, or a name that is free")
    _check_room(target, nbytes)
    return target


def _named(path: str | os.PathLike[str]) -> Path:
    """The path, where it is a name at all: `-` would be a file of that name, which is hard to get rid of."""
    text = os.fspath(path)
    if text in ("", "-"):
        found = "an empty name" if not text else "-, which is standard output elsewhere"
        raise ArgumentError(f"out: found {found}, expected the name of a file or folder to write; give one")
    return Path(text)


def _mode(target: Path) -> int | None:
    """What is at the end of a path's links; None for nothing."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise _refused(target, "a file where a folder is needed", "folders above it") from error
    except (OSError, ValueError) as error:
        raise unwritable(target, error) from error


def _check_room(target: Path, nbytes: int) -> None:
    """Make a nameless file in the folder that is there already, nearest above: permissions alone do not tell."""
    folder = Path(os.path.realpath(target))
    while not folder.is_dir():
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise unwritable(target, error) from error
    if free < nbytes:
        raise _refused(target, f"{_megabytes(free)} free", f"about {_megabytes(nbytes)}", "make room")


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def unwritable(target: Path, error: Exception) -> ArgumentError:
    """What the system said of a place, as the error to raise."""
    reason = getattr(error, "strerror", None) or error
    return ArgumentError(f"Cannot write {target}: {reason}. Choose a place that can be written.")


def _refused(target: Path, found: str, expected: str, cure: str = "choose another name") -> ArgumentError:
    return ArgumentError(f"out {target}: found {found}, expected {expected}; {cure}, or another --out")
