"""The command line of a fuzzer, and its run in a child process: seeds in order, how often each outcome came, as JSON."""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Case = Callable[[int, bool], str]  # a seed, and whether to show its input on stderr: the outcome in a word or two
ROOT = Path(__file__).resolve().parents[2]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every fuzzer has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--count", type=int, default=1000, help="how many seeds")
    made.add_argument("--seconds", type=float, help="as many seeds as begin within this time, instead of --count")
    made.add_argument("--first", type=int, default=0, help="the first seed")
    made.add_argument("--replay", type=int, metavar="SEED", help="run this seed alone and show its input")
    return made


def run(options: argparse.Namespace, case: Case) -> None:
    """Print how often each outcome came; an exception that the case does not expect ends it."""
    counts: collections.Counter[str] = collections.Counter()
    start, seed, shown = time.monotonic(), options.first, options.replay is not None
    if shown:
        counts[case(options.replay, True)] += 1
    while not shown and (
        seed < options.first + options.count if options.seconds is None else time.monotonic() - start < options.seconds
    ):
        sys.stderr.write(f"seed {seed}\n")  # the last one written is the one to replay
        sys.stderr.flush()
        counts[case(seed, False)] += 1
        seed += 1
    sys.stdout.write(json.dumps(dict(sorted(counts.items()))) + "\n")


def in_child(fuzzer: str, *arguments: str) -> tuple[dict[str, int], str]:
    """The counts and what was said on stderr, in a process of its own: a crash of a native parser is an exit code there."""
    command = [sys.executable, "-m", f"tests.fuzz.{fuzzer}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
