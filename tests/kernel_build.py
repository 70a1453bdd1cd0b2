"""kernels/build.py, loaded by path as the folder of the kernels' sources is no package, with objects kept between builds.

The native engine takes more than a minute to compile and several tests want it, most with the same flags. An object is
taken again where the compiler, its flags and what the preprocessor makes of the source are the same.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Shared by all runs of the tests, as the folder of C++ builds (tests/cpp/building.py) is.
OBJECTS = Path(os.environ.get("DIFFUSEVAE_TEST_OBJECTS", ROOT / "build" / "objects"))

_spec = importlib.util.spec_from_file_location("kernel_build", ROOT / "kernels" / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
_compile = build.run


def _run(line: list[str]) -> None:
    """build.run, but that an object which is known already is copied."""
    if "-c" not in line:
        return _compile(line)
    place = line.index("-o")
    output = Path(line[place + 1])
    known = _key([*line[:place], *line[place + 2 :]])
    if known is None or not known.exists():
        _compile(line)
        if known is not None:
            OBJECTS.mkdir(parents=True, exist_ok=True)
            partial = known.with_suffix(f".{os.getpid()}")
            shutil.copy(output, partial)
            os.replace(partial, known)  # a second run of the tests sees a whole object or none
        return None
    shutil.copy(known, output)
    return None


def _key(line: list[str]) -> Path | None:
    """Where the object of a command is kept; None for a command whose preprocessor fails: the compiler says why."""
    text = subprocess.run([word for word in line if word != "-c"] + ["-E", "-P"], capture_output=True, check=False)
    if text.returncode != 0:
        return None
    flags = [word for word in line if not word.startswith(("-D", "-I"))]
    digest = hashlib.sha256("\0".join([_version(line[0]), *flags]).encode() + b"\0" + text.stdout)
    return OBJECTS / f"{digest.hexdigest()}.o"


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


build.run = _run
