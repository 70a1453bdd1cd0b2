"""Ctrl-C on the command line: a native run ends within a step, with exit code 130 and a sentence."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Sampler
from tests.native_models import NEEDS_NATIVE
from tests.unit.test_cli import ROOT

STEPS = 1000
# The program, which says when the chain begins. Where tests run in the background, children ignore the signal unless told.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from engine.cli.main import main
from engine.pipeline import Pipeline
run = Pipeline.run
def told(self, *arguments):
    print("begins", file=sys.stderr, flush=True)
    return run(self, *arguments)
Pipeline.run = told
main()
"""


@NEEDS_NATIVE
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Interrupted."),
        (["--json"], "Interrupted."),
        (["--batch", "8"], "Interrupted; {out} holds 0 of 64 images; go on with: "),
        (["--shard-size", "64"], "Interrupted; {out} keeps the finished shards, and the same command goes on from there"),
    ],
    ids=["at once", "json", "in pieces", "shards"],
)
def test_a_run_ends_long_before_its_chain(
    options: list[str], said: str, native_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle, out = native_bundle("form1"), tmp_path / "images"
    with Sampler(bundle, "native", threads=2) as sampler:
        sampler.sample(8, seed=0, steps=2)
        began = time.monotonic()
        sampler.sample(8, seed=0, steps=2, spacing="linspace")
        whole = (time.monotonic() - began) * STEPS / 2 * 8
    words = ["-n", "64", "--seed", "0", "--steps", str(STEPS), "--spacing", "linspace", "--backend", "native"]
    command = [sys.executable, "-c", PROGRAM, "sample", str(bundle), *words, "--threads", "2", "--out", str(out), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            while (line := child.stderr.readline()) != "begins\n":
                assert line, "it ended before the chain began"
            time.sleep(0.2)
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            printed, stderr = child.communicate(timeout=whole)
        finally:
            child.kill()
    took = time.monotonic() - sent
    assert (child.returncode, printed) == (130, ""), stderr
    assert stderr.splitlines()[-1].startswith(said.format(out=out)), stderr
    assert not list(out.glob("*.np[yz]")) + list(out.glob("*.png")), "what was not finished is not there"
    assert took < whole / 10, f"{took:.2f} s from the signal to the end, of {whole:.1f} s that the chain takes"
