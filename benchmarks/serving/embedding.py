"""The C++ library beside Python: both sample the same seeds from one bundle, taking turns on the same machine.

Each turn is a process of its own: the compiled example latency.cpp, or the same loop over engine.Sampler. Who begins changes
from round to round, so that whatever else the machine does meets both. The images of the compiled example sample.cpp are
compared with Python's first: times of something else would mean nothing.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks import children
from benchmarks.machine import BenchmarkError, describe, machine_facts, write_json
from engine import Sampler
from engine.cli.terminal import Program
from engine.places import check_file
from export.dates import now

ROOT = Path(__file__).resolve().parents[2]
BACKEND = "native"
WARM_UP = 5
PYTHON = "from benchmarks.serving.embedding import time_python; time_python({bundle!r}, {batch}, {repeats})"
WAYS = ("cpp", "python")


def time_python(bundle: str, batch: int, repeats: int) -> None:
    """Print what latency.cpp prints, as JSON: percentiles of milliseconds from seed to pixels."""
    times = []
    with Sampler(bundle, backend=BACKEND) as sampler:
        for i in range(WARM_UP + repeats):
            begin = time.perf_counter()
            sampler.sample(batch, seed=i)
            if i >= WARM_UP:
                times.append(1e3 * (time.perf_counter() - begin))
    p50, p90, p99 = np.percentile(times, [50, 90, 99], method="inverted_cdf")
    sys.stdout.write(json.dumps({"p50": float(p50), "p90": float(p90), "p99": float(p99)}))


def run(command: list[str]) -> str:
    """What a child process printed; BenchmarkError when it failed."""
    done = children.run(command, capture=True, cwd=ROOT)
    if done.returncode != 0:
        said = done.stderr.strip()[-2000:] or "nothing"
        raise BenchmarkError(f"{command[0]}: found exit code {done.returncode}, expected 0; it said: {said}")
    return done.stdout


def turn(way: str, programs: Path, bundle: Path, batch: int, repeats: int) -> dict[str, float]:
    """One process of one of WAYS: its percentiles."""
    if way == "python":
        times: dict[str, float] = json.loads(
            run([sys.executable, "-c", PYTHON.format(bundle=str(bundle), batch=batch, repeats=repeats)])
        )
        return times
    said = run([str(programs / "latency"), str(bundle), str(batch), str(repeats), str(WARM_UP), BACKEND])
    return {name: float(value) for name, value in re.findall(r"(p\d+) ([\d.]+) ms", said)}


def check_images(programs: Path, bundle: Path) -> dict[str, Any]:
    """Who computes and that both ways make the same images; BenchmarkError where they do not."""
    n = 2
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "cpp.ppm"
        run([str(programs / "sample"), str(bundle), str(picture), str(n)])
        head, data = picture.read_bytes().split(b"\n255\n", 1)
    width, height = map(int, head.split()[1:])
    with Sampler(bundle, backend=BACKEND) as sampler:
        batch = sampler.sample(n, seed=0)
        identity: dict[str, Any] = {"bundle": bundle.name, "backend": sampler.backend, "precision": sampler.precision}
        identity |= {"threads": sampler.threads, "steps": len(batch.timesteps)}
    rows = [np.concatenate(list(images), axis=1) for images in (batch.start, batch.images) if images is not None]
    found = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    if not np.array_equal(found, np.concatenate(rows)):
        raise BenchmarkError(
            f"{programs / 'sample'}: found other images than Python's of the same seeds, expected the same bits; compile it "
            f"from this checkout (embed/cpp/README.md)"
        )
    return identity


def measure(programs: Path, bundle: Path, batches: tuple[int, ...], rounds: int, repeats: int) -> dict[str, Any]:
    """The result, without the machine."""
    identity = check_images(programs, bundle)
    results = []
    for batch in batches:
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                turns[way].append(turn(way, programs, bundle, batch, repeats))
        medians = {way: statistics.median(turn["p50"] for turn in turns[way]) for way in WAYS}
        results.append(
            {"batch": batch, "turns": turns, "p50_ms": medians, "cpp_over_python": medians["cpp"] / medians["python"]}
        )
    return {**identity, "rounds": rounds, "repeats": repeats, "images_equal": True, "results": results}


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    head = "{bundle}, {backend} {precision}, {threads} threads, {steps} steps; medians of {rounds} turns of {repeats} runs"
    lines = [head.format(**result)]
    for row in result["results"]:
        p50 = row["p50_ms"]
        p99 = {way: statistics.median(turn["p99"] for turn in row["turns"][way]) for way in WAYS}
        told = [f"{way} p50 {p50[way]:.2f} ms, p99 {p99[way]:.2f} ms" for way in WAYS]
        lines.append(f"batch {row['batch']}: {'; '.join(told)}; C++ takes {row['cpp_over_python']:.3f} of Python's time")
    return "\n".join(lines)


@click.command(cls=Program, context_settings={"show_default": True})
@click.option("--bundle", type=Path, default=Path("out/avatars.bundle"))
@click.option("--programs", type=Path, default=Path("build/cpp/plain/examples"), help="Folder of the compiled examples.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 16))
@click.option("--rounds", type=click.IntRange(1), default=6, help="Turns of each.")
@click.option("--repeats", type=click.IntRange(1), default=50, help="Timed runs in a turn.")
@click.option("--out", type=Path, default=Path("out/embedding.json"))
def main(bundle: Path, programs: Path, batches: tuple[int, ...], rounds: int, repeats: int, out: Path) -> None:
    """Time the C++ library against Python, in turns; exit code 1 where their images differ."""
    check_file(out)
    facts = machine_facts()
    click.echo(describe(facts))
    result = measure(programs.resolve(), bundle.resolve(), batches, rounds, repeats)
    head = {"format": "diffusevae-embedding", "format_version": 1, "date": now(), "machine": facts}
    write_json(out, {**head, **result})
    click.echo(table(result))
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
