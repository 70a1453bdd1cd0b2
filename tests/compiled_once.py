"""Objects kept between compilations: one is taken again where compiler, flags and preprocessed source are the same.

    python tests/compiled_once.py COMPILER ARGUMENTS

compiles as COMPILER would; cmake takes this as a launcher. Where a source lies does not matter: the wheel's sources and the
checkout's are compiled once, and the kernels once for Python and for C++, whose flags are the same and in the same order.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

# Shared by all runs of the tests, as the folder of C++ builds (tests/cpp/building.py) is.
OBJECTS = Path(os.environ.get("DIFFUSEVAE_TEST_OBJECTS", Path(__file__).resolve().parents[1] / "build" / "objects"))
# What the preprocessor alone reads, or changes nothing without -Werror; the second, with a word of its own behind it.
PREPROCESSORS = ("-D", "-I", "-M", "-pthread")
LENIENT = "-Wno-error="
WITH_A_WORD = ("-isystem", "-MF", "-MT", "-MQ")


def take(line: list[str]) -> bool:
    """Whether the object of a command is known, and written then; the list of headers is written in any case."""
    known = _key(line)
    if known is None or not known.exists():
        return False
    shutil.copyfile(known, line[line.index("-o") + 1])
    return True


def keep(line: list[str]) -> None:
    """Keep the object that a command has made."""
    known = _key(line)
    if known is not None:
        OBJECTS.mkdir(parents=True, exist_ok=True)
        partial = known.with_suffix(f".{os.getpid()}")
        shutil.copyfile(line[line.index("-o") + 1], partial)
        os.replace(partial, known)  # another run of the tests sees a whole object or none


def _key(line: list[str]) -> Path | None:
    """Where the object of a command is kept; None for a command whose preprocessor fails: the compiler says why."""
    return _key_of(tuple(line))


@functools.cache
def _key_of(line: tuple[str, ...]) -> Path | None:
    output, source = line.index("-o"), line.index("-c")
    words = [word for i, word in enumerate(line) if i not in (output, output + 1, source)]
    text = subprocess.run([*words, "-E", "-P"], capture_output=True, check=False)
    if text.returncode != 0:
        return None
    ignored = PREPROCESSORS if "-Werror" in words else (*PREPROCESSORS, LENIENT)
    flags = [
        word for before, word in pairwise(words)
        if not word.startswith(ignored) and not {before, word} & set(WITH_A_WORD) and word != line[source + 1]
    ]  # fmt: skip
    last = dict.fromkeys(reversed(flags))  # a flag said twice counts where it is said last
    digest = hashlib.sha256("\0".join([_version(line[0]), *last]).encode() + b"\0" + text.stdout)
    return OBJECTS / f"{digest.hexdigest()}.o"


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def main(line: list[str]) -> int:
    """The compiler's exit code, 0 where it was not needed."""
    if "-c" not in line or "-o" not in line:
        return subprocess.run(line, check=False).returncode
    if take(line):
        return 0
    code = subprocess.run(line, check=False).returncode
    if code == 0:
        keep(line)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
