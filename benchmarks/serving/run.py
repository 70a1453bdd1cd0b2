"""The throughput of Triton and of `diffusevae serve`, and what batching across clients brings: real servers, loaded.

    python benchmarks/serving --bundle out/avatars.bundle
    DIFFUSEVAE_TRITON_PYTHON=.venv-triton python benchmarks/serving        the server in an environment of its own

One Triton on loopback serves the bundle twice a backend: from one repository with dynamic batching, from another with
batches of one; and a `diffusevae serve` of each backend stands beside it. They take turns in one run; every image is
compared with Sampler's, before the timing and during it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from benchmarks.serving import load, report
from benchmarks.serving.http_server import HttpServer
from engine import Sampler
from engine.cli.terminal import Program
from engine.places import check_file
from engine.triton.local_server import LocalServer
from engine.triton.repository import write_repository
from engine.triton.serving import Serving, Settled
from engine.triton.statistics import Counters, counters
from export.dates import now

SEEDS = range(64)
WARM_SECONDS = 0.5
EXACT = ("native",)  # a sample of this backend is the same bit for bit in any batch
TOLERANCE = 2  # levels of 255 that another backend's sample may differ by from batch to batch
Say = Callable[[str], None]


@dataclass(frozen=True)
class Way:
    """One way to serve the bundle: a model on Triton, or over our own HTTP server."""

    settled: Settled
    precision: str
    batched: bool
    http: bool = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self.settled.name


@dataclass(frozen=True)
class Schedule:
    """What is timed: numbers of clients, and turns of so many seconds for each way."""

    clients: tuple[int, ...]
    rounds: int
    seconds: float
    steps: int | None = None


@dataclass
class Tally:
    """Everything counted of a way at one number of clients: by the clients, and by the server."""

    outcome: load.Outcome
    counted: list[Counters]


def write_ways(bundle: Path, folder: Path, backends: Sequence[str], chosen: Serving) -> list[Way]:
    """A repository with dynamic batching and one without, a model of each backend in each."""
    ways = []
    for backend in backends:
        with Sampler(bundle, backend, chosen.precision) as sampler:
            precision = sampler.precision
        for kind, most in (("batched", chosen.max_batch), ("single", 1)):
            serving = Serving(
                f"{backend}_{kind}", most, chosen.delay_us, threads=chosen.threads, backend=backend, precision=precision
            )
            ways.append(Way(write_repository(bundle, folder / kind, serving).settled, precision, most > 1))
        ways.append(Way(replace(ways[-2].settled, name=f"{backend}_http"), precision, batched=True, http=True))
    return ways


@dataclass(frozen=True)
class Servers:
    """Triton, and our own server of each way that has one by the way's name."""

    triton: LocalServer
    http: Mapping[str, HttpServer]

    def address(self, model: str) -> str:
        """Where clients of a way ask."""
        return self.http[model].address if model in self.http else self.triton.grpc

    def counters(self, model: str) -> Counters:
        """What its server has counted."""
        return self.http[model].counters() if model in self.http else counters(self.triton, model)


def targets_of(bundle: Path, ways: Sequence[Way], servers: Servers, steps: int | None) -> dict[str, load.Target]:
    """What each way is asked for, with the images that Sampler makes of it."""
    found = {}
    for way in ways:
        with Sampler(bundle, way.settled.backend, way.precision) as sampler:
            images = sampler.sample(seed=list(SEEDS), steps=steps).images
        tolerance = 0 if way.settled.backend in EXACT else TOLERANCE
        found[way.name] = load.Target(
            servers.address(way.name), way.name, dict(zip(SEEDS, images, strict=True)), steps, tolerance
        )
    return found


def take_turns(
    servers: Servers, ways: Sequence[Way], targets: dict[str, load.Target], schedule: Schedule, say: Say
) -> dict[tuple[str, int], Tally]:
    """Time every way at every number of clients, in alternating turns."""
    tallies: dict[tuple[str, int], Tally] = {}
    for turn in range(schedule.rounds):
        for clients in schedule.clients:
            for way in ways if turn % 2 == 0 else reversed(ways):
                target = targets[way.name]
                load.drive(target, clients, WARM_SECONDS)
                counted = settled(servers, way.name, None)
                outcome = load.drive(target, clients, schedule.seconds)
                added = settled(servers, way.name, counted.requests + len(outcome.milliseconds)).since(counted)
                tally = tallies.setdefault((way.name, clients), Tally(load.Outcome(), []))
                tally.outcome.add(outcome)
                tally.counted.append(added)
                rate = len(outcome.milliseconds) / outcome.seconds
                say(f"round {turn + 1}, {way.name}, {clients} clients: {rate:.1f} images/s, {len(outcome.errors)} errors")
    return tallies


def settled(servers: Servers, model: str, requests: int | None) -> Counters:
    """The server's counters, once they stand still or hold `requests`: it answers first and counts then."""
    before = servers.counters(model)

    def still() -> bool:
        nonlocal before
        last, before = before, servers.counters(model)
        return before.requests == last.requests if requests is None else before.requests >= requests

    servers.triton.wait_until(still, "end of counting", 10)
    return before


def measure(
    facts: dict[str, Any], bundle: Path, backends: Sequence[str], chosen: Serving, schedule: Schedule,
    python: str | None, say: Say,
) -> dict[str, Any]:  # fmt: skip
    """Write the repositories, start the servers, compare, time, and stop them."""
    with tempfile.TemporaryDirectory(prefix="diffusevae-serving-") as folder:
        ways = write_ways(bundle, Path(folder), backends, chosen)
        local = LocalServer(Path(folder, "batched"), Path(folder, "single"), python=python, deadline=120)
        with local as server, ExitStack() as stack:
            own = {}
            for way in (way for way in ways if way.http):
                options = [
                    "--backend", way.settled.backend, "--precision", way.precision,
                    "--max-batch", str(way.settled.max_batch), "--max-queue", "1024",
                ]  # fmt: skip
                each = HttpServer("serve", bundle.resolve(), chosen.threads, options)
                own[way.name] = stack.enter_context(each)
            servers = Servers(server, own)
            targets = targets_of(bundle, ways, servers, schedule.steps)
            for target in targets.values():
                load.check(target)
            say(f"{len(targets)} models answer what Sampler makes, {len(SEEDS)} seeds each")
            version = json.loads(server.get("/v2")[1])["version"]
            tallies = take_turns(servers, ways, targets, schedule, say)
        if server.exit_code != 0:
            raise BenchmarkError(f"found exit code {server.exit_code} of the server, expected 0:\n{server.log()[-2000:]}")
    with Sampler(bundle, backends[0]) as sampler:
        setting = sampler.sample(1, seed=0, steps=schedule.steps).setting
    return {
        "format": "diffusevae-serving",
        "format_version": 1,
        "date": now(),
        "machine": facts,
        "server": {
            "triton": version, "tritonclient": metadata.version("tritonclient"),
            "protocol": "gRPC to Triton, HTTP to diffusevae serve, loopback",
        },
        "bundle": {"name": sampler.bundle.manifest.name, "source_sha256": sampler.bundle.manifest.source.sha256},
        "setting": {"steps": setting.steps, "method": setting.method, "t_start": setting.t_start, "eta": setting.eta},
        "batching": {"max_batch": chosen.max_batch, "delay_us": chosen.delay_us},
        "protocol": {"rounds": schedule.rounds, "seconds_a_turn": schedule.seconds, "samples_a_request": 1},
        "results": report.rows(ways, tallies),
    }


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", type=Path, default=Path("out/avatars.bundle"))
@click.option("--backend", "backends", multiple=True, default=("native", "onnxruntime"), help="Repeat for several.")
@click.option("--precision", default="auto", help="Of every backend.")
@click.option("--clients", type=click.IntRange(1, 256), multiple=True, default=(1, 4, 16, 64), help="Repeat for several.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Turns of each way at each number of clients.")
@click.option("--seconds", type=click.FloatRange(0.2, 60), default=5.0, help="Length of a turn.")
@click.option("--max-batch", type=click.IntRange(2), default=16, help="Of the way with dynamic batching.")
@click.option("--delay-us", type=click.IntRange(0), default=2000, help="How long a request may wait for others.")
@click.option("--steps", type=int, default=None, help="Default: the bundle's recorded setting.")
@click.option("--threads", type=int, default=None, help="Default: what affinity and container allow.")
@click.option("--python", type=click.Path(), default=None, help="The server's environment, where it is not this one.")
@click.option("--out", type=Path, default=Path("out/serving.json"))
@click.option("--plot", type=Path, default=Path("out/serving.png"))
def main(
    bundle: Path, backends: tuple[str, ...], precision: str, clients: tuple[int, ...], rounds: int, seconds: float,
    max_batch: int, delay_us: int, steps: int | None, threads: int | None, python: str | None, out: Path, plot: Path,
) -> None:  # fmt: skip
    """Load Triton and `diffusevae serve` with concurrent clients; exit code 1 when a request fails or an image is wrong."""
    for place in (out, plot):
        check_file(place)
    load.client_library()
    facts = machine_facts()  # now, while the load average is not yet our own
    click.echo(describe(facts))
    chosen = Serving(max_batch=max_batch, delay_us=delay_us, threads=threads, precision=precision)
    schedule = Schedule(tuple(sorted(set(clients))), rounds, seconds, steps)
    result = measure(facts, bundle, backends, chosen, schedule, python, click.echo)
    write_json(out, result)
    click.echo(report.table(result))
    report.draw(result, plot)
    click.echo(f"wrote {out} and {plot}")
    errors = sum(row["errors"] for row in result["results"])
    if errors:
        raise click.ClickException(f"found {errors} requests that failed, expected none; {out} has the first of each kind")
