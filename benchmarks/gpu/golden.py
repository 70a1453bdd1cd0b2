"""The golden models on a GPU: their vectors, at the tolerance of half precision.

The vectors were computed by the reference implementation in float32 (tests/golden/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine import Sampler
from engine.result import StepInfo

# One network call in half: relative, L2. A chain of fifty clipped steps is compared by its mean.
FIRST_STEP, CHAIN_MEAN = 1e-2, 3e-2
CHAIN = re.compile(r"(dd[ip]m)_(\w+?)_(\d+)(?:_g([\d.]+))?")


def check(backend: str, target: str, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for every chain of every golden model."""
    from tests.golden_models import NAMES, expected

    rows = []
    for name in NAMES:
        with Sampler(build(name, backend, target, folder), backend) as sampler:
            stored = expected(name)
            for chain in sorted(key for key in stored if CHAIN.fullmatch(key)):
                rows.append({"model": name, "chain": chain, **compare(sampler, chain, stored)})
        good = sum(row["ok"] for row in rows if row["model"] == name)
        say(f"  {name}: {good} of {sum(row['model'] == name for row in rows)} chains within tolerance")
    return rows


def build(name: str, backend: str, target: str, folder: Path) -> Path:
    """The bundle of one golden model with plans for this GPU."""
    from export.build import Request
    from export.build import build as build_bundle
    from tests.golden_models import build_options, write_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    request = Request(
        write_checkpoint(name, folder / f"golden-{name}.ckpt"),
        out=folder / f"golden-{name}.bundle",
        backends=("onnxruntime", backend),
        precisions=("fp16",),
        options=build_options(name),
        engine_options={"targets": (target,)} if backend == "tensorrt_rtx" else {},
    )
    return build_bundle(request).path


def compare(sampler: Sampler, chain: str, stored: dict[str, np.ndarray]) -> dict[str, Any]:
    """Sample one chain with the golden inputs, step by step and as it runs in earnest."""
    found = CHAIN.fullmatch(chain)
    assert found is not None
    options: dict[str, Any] = {"method": found[1], "spacing": found[2], "steps": int(found[3])}
    options["guidance"] = float(found[4] or 0.0)
    options |= {"x_T": stored["x_T"], "noise": stored.get(f"{chain}_noise"), "seed": 0}
    options |= {spec.name: stored[spec.name] for spec in sampler.inputs}
    states: list[np.ndarray] = []

    def keep(info: StepInfo) -> None:
        states.append(info.x.copy())

    sampler.sample(callback=keep, **options)
    for _ in range(2):
        batch = sampler.sample(**options)
    mean = float(np.abs(batch.x - stored[chain]).mean())
    first = None
    if f"{chain}_step1" in stored:
        wanted = stored[f"{chain}_step1"]
        first = float(np.linalg.norm(states[0] - wanted) / np.linalg.norm(wanted))
    ok = mean <= CHAIN_MEAN and (first is None or first <= FIRST_STEP)
    return {"first_step": first, "first_step_bound": FIRST_STEP, "mean": mean, "bound": CHAIN_MEAN, "ok": ok}
