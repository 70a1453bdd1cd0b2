"""Goals of the native engine: ratios of medians from one run, and how much everything but the networks may take.

A goal belongs to a family of processors; on others it is shown without a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BF16, INT8, INT8_ALL, ONE = "native bf16", "native int8", "native int8, all layers", "native bf16, 1 thread"
LARGER = ("celeba64", "celebamaskhq128")
OPENVINO, OPENVINO_F32, EAGER = "openvino bf16", "openvino f32", "torch eager f32"
ANY, AMX, AVX512, AVX2 = "any", "amx", "avx512", "avx2"
DENOISERS, DECODERS = ("celeba256", "churches256", "cin256-v2"), ("decoder-f4", "decoder-f8")
GUIDED = ("64x64_diffusion", "256x256_diffusion")
# What single networks are held to everywhere, beside OpenVINO in bf16 where the processor has that.
SINGLE = (
    *((model, batch, goal) for model in DENOISERS for batch, goal in ((1, 1.7), (4, 1.5))),
    *((model, 1, 1.7) for model in GUIDED),
    *((model, 1, 1.3) for model in DECODERS),
)


@dataclass(frozen=True)
class Target:
    """`ours` must be at least `goal` times as fast as `peer` in this measure ("step_ms" or "total_ms"), in medians.

    family: where the goal holds, AMX, AVX512 (with or without its bf16), AVX2 or ANY. peer None: `goal` is the most that
    everything but the networks may take, in percent of a step.
    """

    family: str
    model: str
    batch: int
    ours: str
    peer: str | None
    measure: str
    goal: float


TARGETS = (
    *(Target(AMX, "cifar10", batch, BF16, OPENVINO, "step_ms", goal) for batch, goal in ((1, 2.4), (16, 2.0))),
    *(Target(AMX, "cifar10", batch, INT8, OPENVINO, "step_ms", goal) for batch, goal in ((1, 2.9), (16, 2.2))),
    *(Target(AMX, "cifar10", batch, INT8_ALL, OPENVINO, "step_ms", goal) for batch, goal in ((1, 4.2), (16, 3.0))),
    *(Target(AMX, "cifar10", batch, BF16, EAGER, "total_ms", 10.0) for batch in (1, 16)),
    *(Target(AMX, "cifar10", batch, INT8, EAGER, "total_ms", goal) for batch, goal in ((1, 17.0), (16, 15.0))),
    *(Target(AMX, model, batch, BF16, OPENVINO, "step_ms", 1.7) for model in LARGER for batch in (1, 16)),
    *(
        Target(AVX512, model, batch, ours, OPENVINO_F32, "step_ms", 1.5)
        for model in ("cifar10", *LARGER) for batch in (1, 16) for ours in (INT8, INT8_ALL)
    ),
    *(
        Target(family, model, batch, BF16, peer, "step_ms", goal)
        for family, peer in ((AMX, OPENVINO), (AVX512, OPENVINO), (AVX2, OPENVINO_F32)) for model, batch, goal in SINGLE
    ),
    *(Target(ANY, model, 1, BF16, ONE, "step_ms", 1.8) for model in (*DENOISERS, *GUIDED, *DECODERS)),
    Target(ANY, "avatars", 1, BF16, None, "step_ms", 4.0),
    *(Target(ANY, "cifar10", batch, BF16, None, "step_ms", 2.0) for batch in (1, 16)),
    *(Target(ANY, "cifar10", batch, BF16, ONE, "step_ms", 1.8) for batch in (1, 16)),
)  # fmt: skip


def judge(models: Sequence[Mapping[str, Any]], isa: str | None) -> list[dict[str, Any]]:
    """One row a target: what was measured (None where a contestant was not timed) and "pass", "miss" or "no verdict".

    isa: the instruction set that the native engine ran on, None where it did not run.
    """
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
        holds = isa is not None and (target.family == ANY or isa.startswith(target.family))
        verdict = "no verdict" if found is None or not holds else "pass" if good else "miss"
        judged.append({
            "family": target.family, "model": target.model, "batch": target.batch, "ours": target.ours, "peer": target.peer,
            "measure": target.measure, "goal": target.goal, "found": found, "verdict": verdict,
        })  # fmt: skip
    return judged


def _preset(name: str) -> str:
    return name.removesuffix("-random")


def text(rows: Sequence[Mapping[str, Any]], isa: str | None) -> str:
    """The table for people."""
    ran = f"on instruction set {isa}" if isa else "which did not run here"
    lines = [f"goals of the native engine, {ran}; those for other processors have no verdict"]
    for row in rows:
        what = "everything but the networks" if row["peer"] is None else f"against {row['peer']}"
        kind = {"step_ms": "a step", "total_ms": "end to end"}[row["measure"]]
        sign, unit = ("<=", " %") if row["peer"] is None else (">=", "x")
        found = "not timed" if row["found"] is None else f"{row['found']:.2f}{unit}"
        lines.append(
            f"{row['family']:<6} {row['model']:<16} batch {row['batch']:<3} {row['ours']:<24} {what:<28} {kind:<11} "
            f"{sign} {row['goal']:<4g}{unit:<2} {found:>10}  {row['verdict']}"
        )
    return "\n".join(lines)
