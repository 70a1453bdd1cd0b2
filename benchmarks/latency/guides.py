"""A guide beside its classifier: the operations up to the classifier's answer, and those of the way back.

    python benchmarks/latency/guides.py --size 64 --batch 1       (random weights in the shape of a published classifier)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # from a checkout nothing needs to be installed

import click
import numpy as np
import torch
from torch import nn

from benchmarks.latency.layers import summed
from engine.backends.native.graph import OperationTime, open_graph
from engine.backends.native.weights import weights_of
from engine.cli.terminal import Program
from engine.threads import resolve_threads
from export.families.adm.published import CLASSIFIERS
from export.graphs.roles import Role, example, tensor
from export.models.openai.classifier import AttentionPool, Classifier
from export.native.guide import lower_classifier

SIDES = ("64", "128", "256")  # of the images of published classifiers


def classifier(size: int) -> Classifier:
    """Random weights in the shape of a published classifier."""
    torch.manual_seed(0)
    network = Classifier(CLASSIFIERS[f"{size}x{size}_classifier"].spec).eval().requires_grad_(False)
    pool = network.out[2]
    assert isinstance(pool, AttentionPool)
    nn.init.normal_(pool.positional_embedding)
    return network


def guide(network: Classifier, size: int) -> Role:
    """The signature of its guide."""
    row = tensor("row", (1, network.row_width))
    label, image = tensor("label", ("batch",), "int64", (0.0, network.spec.out_channels - 1.0)), ("batch", 3, size, size)
    return Role("guide", network, (tensor("x", image), label, row), (tensor("g", image), tensor("entropy", ("batch",))))


def divided(times: Sequence[OperationTime]) -> tuple[list[OperationTime], list[OperationTime]]:
    """The operations of the classifier, its answer among them, and those behind it."""
    last = next(i for i, op in enumerate(times) if op.kind == "classify")
    return list(times[: last + 1]), list(times[last + 1 :])


def milliseconds(times: Sequence[OperationTime]) -> float:
    """What they take together."""
    return sum(op.prepare_us + op.product_us for op in times) / 1e3


def table(forward: Sequence[OperationTime], back: Sequence[OperationTime]) -> str:
    """For people: milliseconds and GFLOP of either, by kind and size, and the guide's time over the classifier's."""
    lines = []
    for name, times in (("classifier", forward), ("way back", back)):
        flop = sum(op.flop for op in times)
        lines.append(f"{name:<34}{milliseconds(times):>10.2f} ms{flop / 1e9:>10.2f} GFLOP")
        lines += [
            f"  {row.count:>3} x {row.kind + ' at ' + str(row.side):<26}{(row.prepare_us + row.product_us) / 1e3:>10.2f} ms"
            f"{row.flop / 1e9:>10.2f} GFLOP"
            for row in summed(times)
        ]
    ratio = (milliseconds(forward) + milliseconds(back)) / milliseconds(forward)
    return "\n".join([*lines, f"the guide takes {ratio:.2f} times what its classifier does"])


@click.command(cls=Program)
@click.option("--size", type=click.Choice(SIDES), default="64", help="side of the images")
@click.option("--batch", type=click.IntRange(1), default=1, help="samples")
@click.option("--runs", type=click.IntRange(1), default=5, help="runs with the clocks on, behind one to warm up")
@click.option("--threads", type=click.IntRange(1), help="threads; all cores without it")
def main(size: str, batch: int, runs: int, threads: int | None) -> None:
    """Time a guide of random weights in the native engine, operation by operation."""
    network = classifier(int(size))
    role = guide(network, int(size))
    made = lower_classifier(network, role)
    given = {name: value.numpy() for name, value in example(role, batch, 1, 0).items()}
    packed, count = weights_of(made.weights, "weights"), resolve_threads(threads)
    with open_graph(made.program, packed, role.spec(), role.name, "bf16", count, "program") as graph:
        found = graph(**given)
        if not all(np.isfinite(array).all() for array in found.values()):
            raise click.ClickException("found a gradient that is not finite, expected numbers; report this message")
        times = graph.operation_times(runs, given)
        click.echo(f"{graph.isa}, {count} threads, batch {batch}, {size} x {size}")
    click.echo(table(*divided(times)))


if __name__ == "__main__":
    main()
