"""Does the native engine reach what it promises? Ratios of medians from one run, beside the goal of each.

The goals are for a processor with AMX tiles; on any other they are shown without a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BF16, INT8, INT8_ALL, ONE = "native bf16", "native int8", "native int8, all layers", "native bf16, 1 thread"
LARGER = ("celeba64", "celebamaskhq128")
OPENVINO, EAGER = "openvino bf16", "torch eager f32"


@dataclass(frozen=True)
class Target:
    """`ours` must be at least `goal` times as fast as `peer` in this measure ("step_ms" or "total_ms"), in medians.

    peer None: `goal` is the most that everything but the networks may take, in percent of a step.
    """

    model: str
    batch: int
    ours: str
    peer: str | None
    measure: str
    goal: float


TARGETS = (
    *(Target("cifar10", batch, BF16, OPENVINO, "step_ms", goal) for batch, goal in ((1, 2.4), (16, 2.0))),
    *(Target("cifar10", batch, INT8, OPENVINO, "step_ms", goal) for batch, goal in ((1, 2.9), (16, 2.2))),
    *(Target("cifar10", batch, INT8_ALL, OPENVINO, "step_ms", goal) for batch, goal in ((1, 4.2), (16, 3.0))),
    *(Target("cifar10", batch, BF16, EAGER, "total_ms", 10.0) for batch in (1, 16)),
    *(Target("cifar10", batch, INT8, EAGER, "total_ms", goal) for batch, goal in ((1, 17.0), (16, 15.0))),
    *(Target("cifar10", batch, BF16, None, "step_ms", 3.0) for batch in (1, 16)),
    *(Target(model, batch, BF16, OPENVINO, "step_ms", 1.7) for model in LARGER for batch in (1, 16)),
    *(Target("cifar10", batch, BF16, ONE, "step_ms", 1.8) for batch in (1, 16)),
)


def judge(models: Sequence[Mapping[str, Any]], amx: bool) -> list[dict[str, Any]]:
    """One row a target: what was measured (None where a contestant was not timed) and "pass", "miss" or "no verdict"."""
    rows = {
        (_preset(model["name"]), row["batch"], row["contestant"]): row for model in models for row in model["results"]
    }
    judged = []
    for target in TARGETS:
        ours = rows.get((target.model, target.batch, target.ours))
        peer = rows.get((target.model, target.batch, target.peer)) if target.peer else None
        found: float | None = None
        if target.peer is None and ours is not None:
            found = ours["rest"]["percent_of_step"]
        elif ours is not None and peer is not None:
            found = round(peer[target.measure]["p50"] / ours[target.measure]["p50"], 3)
        good = found is not None and (found >= target.goal if target.peer else found <= target.goal)
        verdict = "no verdict" if found is None or not amx else "pass" if good else "miss"
        judged.append({
            "model": target.model, "batch": target.batch, "ours": target.ours, "peer": target.peer,
            "measure": target.measure, "goal": target.goal, "found": found, "verdict": verdict,
        })  # fmt: skip
    return judged


def _preset(name: str) -> str:
    return name.removesuffix("-random")


def text(rows: Sequence[Mapping[str, Any]], amx: bool) -> str:
    """The table for people."""
    lines = [] if amx else ["goals are for processors with AMX tiles, which this one has not: no verdicts"]
    for row in rows:
        what = "everything but the networks" if row["peer"] is None else f"against {row['peer']}"
        kind = {"step_ms": "a step", "total_ms": "end to end"}[row["measure"]]
        sign, unit = ("<=", " %") if row["peer"] is None else (">=", "x")
        found = "not timed" if row["found"] is None else f"{row['found']:.2f}{unit}"
        lines.append(
            f"{row['model']:<16} batch {row['batch']:<3} {row['ours']:<24} {what:<28} {kind:<11} "
            f"{sign} {row['goal']:<4g}{unit:<2} {found:>10}  {row['verdict']}"
        )
    return "\n".join(lines)
