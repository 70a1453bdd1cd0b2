"""The time of a step by operation: the native engine's, by kind and size, beside what the processor could do.

    python benchmarks/latency/layers.py out/avatars.bundle --batch 1 --precision bf16
    python benchmarks/latency/layers.py out/cin256-v2                                   a network that networks.py wrote
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np

from benchmarks.latency import roofline
from benchmarks.latency.calls import check_inputs, step_arrays
from benchmarks.latency.networks import Network
from benchmarks.machine import describe, machine_facts
from engine import backends
from engine.backends.native.backend import Native
from engine.backends.native.graph import NativeGraph, OperationTime
from engine.bundle.reader import Bundle
from engine.cli.terminal import Program
from engine.threads import resolve_threads

Arrays = Mapping[str, np.ndarray]
SECONDS = 1.0  # of warming up, and of runs with the clocks on
SUMMED = ("prepare_us", "product_us", "flop", "weight_bytes")


@dataclass(frozen=True)
class Row:
    """All operations of one kind and size."""

    kind: str
    side: int
    count: int
    prepare_us: float
    product_us: float
    flop: float
    weight_bytes: float


def opened(path: Path, batch: int, precision: str, threads: int) -> tuple[str, NativeGraph, Arrays]:
    """The name, the graph and the inputs of a bundle's denoiser or of a network's folder."""
    if Network(path).is_whole:
        network = Network(path)
        return path.name, network.native(precision, threads), network.inputs(batch, seed=1)
    bundle = Bundle.open(path)
    x, values, timestep = check_inputs(bundle.manifest, batch)[1]  # a middle timestep
    how: dict[str, Any] = {"backend": Native.NAME, "precision": precision, "threads": threads}
    graph = backends.load(bundle, bundle.manifest.pipeline.step.graph, **how)
    assert isinstance(graph, NativeGraph)
    return bundle.manifest.name, graph, step_arrays(bundle, x, values, timestep, **how)


def measure(graph: NativeGraph, arrays: Arrays) -> tuple[float, list[OperationTime]]:
    """The median milliseconds of a step without clocks, and the operations with them."""
    begin, times = time.perf_counter(), []
    while time.perf_counter() - begin < SECONDS or len(times) < 3:
        start = time.perf_counter()
        graph(**arrays)
        times.append(1e3 * (time.perf_counter() - start))
    step = float(np.median(times))
    return step, graph.operation_times(max(3, round(1e3 * SECONDS / step)), arrays)


def summed(operations: Sequence[OperationTime]) -> list[Row]:
    """A row a kind and size, the one that takes longest first."""
    groups: dict[tuple[str, int], list[OperationTime]] = {}
    for op in operations:
        groups.setdefault((op.kind, op.side), []).append(op)
    rows = [
        Row(kind, side, len(ops), *(sum(getattr(op, name) for op in ops) for name in SUMMED))
        for (kind, side), ops in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.prepare_us - row.product_us)


def table(rows: Sequence[Row], peaks: dict[str, float | None]) -> str:
    """For people: microseconds, GFLOP/s, percent of what the products reach from L2, and GB/s of weights.

    GFLOP/s are of products done: 16 for 4 pixels where a 3x3 convolution has Winograd's form, not 36.
    """
    total = sum(row.prepare_us + row.product_us for row in rows)
    head = ("operation", "side", "n", "prepare us", "product us", "share", "GFLOP/s", "peak", "GB/s")
    lines = ["{:<22} {:>4} {:>3} {:>10} {:>10} {:>6} {:>8} {:>6} {:>6}".format(*head)]
    for row in rows:
        rate = row.flop / row.product_us / 1e3
        peak = peaks.get("int8" if row.kind.endswith("int8") else "bf16")
        of_peak = f"{100 * rate / 1e3 / peak:5.0f}%" if peak and row.kind.startswith("conv") else "     –"
        share = 100 * (row.prepare_us + row.product_us) / total
        lines.append(
            f"{row.kind:<22} {row.side:>4} {row.count:>3} {row.prepare_us:>10.1f} {row.product_us:>10.1f} {share:>5.1f}% "
            f"{rate:>8.1f} {of_peak} {row.weight_bytes / row.product_us / 1e3:>6.1f}"
        )
    preparing = 100 * sum(row.prepare_us for row in rows) / total
    return "\n".join([*lines, f"all operations {total / 1e3:.3f} ms, {preparing:.1f} % of it preparing operands"])


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("path", metavar="BUNDLE|NETWORK", type=Path)
@click.option("--batch", type=click.IntRange(1), default=1)
@click.option("--precision", type=click.Choice(Native.PRECISIONS), default="bf16")
@click.option("--threads", type=int, default=None, help="[default: what affinity and container allow]")
def main(path: Path, batch: int, precision: str, threads: int | None) -> None:
    """Time every operation of a bundle's denoiser, or of a network by itself, in backend native."""
    threads = resolve_threads(threads)
    name, graph, arrays = opened(path, batch, precision, threads)
    click.echo(describe(machine_facts()))  # before anything runs: the load average is to be others'
    with graph:
        step, operations = measure(graph, arrays)
        isa = graph.isa
    roof = roofline.measure(threads)
    click.echo(f"{name}, native {precision} on {isa}, batch {batch}: {step:.3f} ms a step without clocks")
    click.echo(table(summed(operations), roof["tflops"]))
    click.echo(f"memory: {roof['stream_gb_per_s']:.1f} GB/s")


if __name__ == "__main__":
    main()
