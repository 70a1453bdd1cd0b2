"""Options of the command line for the builders of engines, each refused beside backends that do not take it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from engine.cli.inputs import options
from engine.cli.options import NearChoice
from engine.errors import ArgumentError
from export.native.int8 import parse_budget
from export.tensorrt.options import DEFAULT_BATCH, HARDWARE, LEVELS, RTX_DEFAULT_TARGETS, RTX_TARGETS

TENSORRT = ("tensorrt_rtx", "tensorrt")
TAKEN_BY = {  # parameter -> the backends whose engines it changes
    "targets": TENSORRT,
    "trt_batch": TENSORRT,
    "trt_level": TENSORRT,
    "trt_workspace": TENSORRT,
    "trt_hardware": ("tensorrt",),
    "trt_timing_cache": ("tensorrt",),
    "int8_budget": ("native",),
}
engine_options = options(
    click.option(
        "--targets",
        multiple=True,
        metavar="NAME...",
        help=f"GPUs that tensorrt_rtx plans are for, one or more of {', '.join(RTX_TARGETS)}; several share a plan.  "
        f"[default: {', '.join(RTX_DEFAULT_TARGETS)}]",
    ),
    click.option(
        "--trt-batch",
        type=(int, int, int),
        default=None,
        metavar="MIN OPT MAX",
        help=f"Batch sizes that TensorRT plans accept, and the one that they are fastest at.  "
        f"[default: {' '.join(map(str, DEFAULT_BATCH))}]",
    ),
    click.option(
        "--trt-level",
        type=click.IntRange(LEVELS[0], LEVELS[-1]),
        help="How long TensorRT looks for faster kernels; tensorrt_rtx looks on the GPU itself.  [default: 3]",
    ),
    click.option("--trt-workspace", type=click.IntRange(1), metavar="MIB", help="Limit of a plan's scratch memory."),
    click.option(
        "--trt-hardware",
        type=NearChoice(HARDWARE),
        help="Other GPUs that a plan of backend tensorrt runs on, beside the one that builds it.  [default: none]",
    ),
    click.option(
        "--trt-timing-cache",
        type=click.Path(path_type=Path),
        help="File in which backend tensorrt keeps measured timings from build to build.",
    ),
    click.option(
        "--int8-budget",
        metavar="BUDGET",
        help="Which layers native int8 may take: 'free' (those that together cost no more than bf16 does elsewhere), 'all', "
        "or the largest relative error of one step, such as 0.03.  [default: free]",
    ),
)


def take_engine_options(said: dict[str, Any], backends: Sequence[str]) -> dict[str, Any]:
    """Take the builders' options out of what was said; ArgumentError for one that no chosen backend takes."""
    taken = {key: said.pop(key) for key in TAKEN_BY}
    for key, value in taken.items():
        if value not in (None, ()) and not set(TAKEN_BY[key]) & set(backends):
            option = "--" + key.replace("_", "-")
            raise ArgumentError(
                f"{option}: found it beside --backends {' '.join(backends)}, expected {' or '.join(TAKEN_BY[key])} among "
                f"them; add it, or leave {option} out"
            )
    if taken["int8_budget"] is not None:
        parse_budget(taken["int8_budget"])
    return taken
