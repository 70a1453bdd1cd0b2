"""`diffusevae serve` or `studio` as a process of its own: its address, its metrics, and its end."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import children
from benchmarks.machine import BenchmarkError
from engine.triton.statistics import STAGES, Counters

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
METRIC = re.compile(r"^(diffusevae_\w+?)(?:\{.*\})? (\S+)$", re.MULTILINE)


class HttpServer:
    """A server on a free port of the loopback interface, ready when the block is entered.

    verb: serve or studio; options: its others, as on the command line.
    """

    def __init__(self, verb: str, bundle: Path, threads: int | None, options: Sequence[str] = ()) -> None:
        given = options if threads is None else [*options, "--threads", str(threads)]
        self._command = [sys.executable, "-m", "engine", verb, str(bundle), "--port", "0", *given]

    def __enter__(self) -> HttpServer:
        self._child = children.Child(self._command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._process = self._child.process
        assert self._process.stdout is not None
        found = next((line for line in self._process.stdout if line.startswith("open ")), "")
        if not found:
            said = " ".join(self._command)
            self._child.end()
            raise BenchmarkError(f"{said}: found no address in what it printed, expected one; run it by hand")
        self.address = found.split()[1].removesuffix("/docs")
        end = time.monotonic() + START_SECONDS
        while self._get("/readyz")[0] != 200:
            if time.monotonic() > end:
                self._child.end()
                raise BenchmarkError(f"{self.address}: found it not ready after {START_SECONDS:g} s, expected it to be")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._child.end(30)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def counters(self) -> Counters:
        """Sums since it was started; input and output are part of what the clients measure alone."""
        sums: dict[str, float] = {}
        for name, value in METRIC.findall(self._get("/metrics")[1].decode()):
            sums[name] = sums.get(name, 0.0) + float(value)
        seconds = dict.fromkeys(STAGES, 0.0) | {
            "queue": sums["diffusevae_queue_seconds_total"], "compute_infer": sums["diffusevae_run_seconds_total"],
        }  # fmt: skip
        requests, images, runs = (
            int(sums.get(f"diffusevae_{name}_total", 0)) for name in ("requests", "images", "runs")
        )
        return Counters(requests, images, runs, seconds)

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
