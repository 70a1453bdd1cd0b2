"""The contestants of the latency benchmark, the task that they are given, and why one cannot take part on a machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.latency.calls import F32, Values
from engine.bundle.reader import Bundle
from engine.commands import install_extra
from engine.processor import Processor


@dataclass(frozen=True)
class Contestant:
    """A name, how it computes, and the bounds its outputs must keep (duel.agreement says of what).

    kind: "engine", a Sampler on `backend`; "torch", the same network in eager PyTorch; "compile", through torch.compile;
    "plain", a plain export of the network in another runtime; "diffusers", diffusers' own class of one network, compiled.
    threads: None for the benchmark's own number. variant: a bundle beside the first, by its name in Task.variants.
    """

    name: str
    kind: str
    backend: str
    precision: str
    step_bound: float
    chain_bound: float
    threads: int | None = None
    variant: str | None = None


# Bounds of bf16: one step of the CIFAR-10 network measured 0.009 in eager PyTorch. Chains amplify (at t = 999 an error of
# eps is multiplied by 1 / sqrt(alpha_bar), 158, before x_0 is clipped): their bound only tells one image from another. A
# plain export in bf16 rounds the time embedding too: 0.041 a step on AMX, 0.089 on AVX512_BF16, where chains differ by 0.47.
F32_BOUNDS, BF16_BOUNDS, INT8_BOUNDS, EAGER_BF16_BOUNDS = (1e-4, 2e-3), (0.03, 0.25), (0.04, 0.3), (0.04, 0.25)
PLAIN_BF16_BOUNDS = (0.12, 0.6)
DIFFUSERS_BF16_BOUNDS = (0.06, 0.25)  # norms and sums of residuals are in bf16, too
ALL_INT8_BOUNDS = (0.06, 0.4)  # the far end of --int8-budget: 0.018 on cifar10, 0.047 on celebamaskhq128 (random weights)
ALL_INT8 = "int8-all"  # the variant of a bundle whose every eligible layer is int8

CONTESTANTS = (
    Contestant("torch eager f32", "torch", "torch", "f32", *F32_BOUNDS),
    Contestant("torch eager bf16", "torch", "torch", "bf16", *EAGER_BF16_BOUNDS),
    Contestant("torch.compile f32", "compile", "torch", "f32", *F32_BOUNDS),
    Contestant("torch.compile bf16", "compile", "torch", "bf16", *EAGER_BF16_BOUNDS),
    Contestant("diffusers bf16, torch.compile", "diffusers", "torch", "bf16", *DIFFUSERS_BF16_BOUNDS),
    Contestant("plain onnxruntime f32", "plain", "onnxruntime", "f32", *F32_BOUNDS),
    Contestant("plain openvino f32", "plain", "openvino", "f32", *F32_BOUNDS),
    Contestant("plain openvino bf16", "plain", "openvino", "bf16", *PLAIN_BF16_BOUNDS),
    Contestant("onnxruntime f32", "engine", "onnxruntime", "f32", *F32_BOUNDS),
    Contestant("openvino f32", "engine", "openvino", "f32", *F32_BOUNDS),
    Contestant("openvino bf16", "engine", "openvino", "bf16", *BF16_BOUNDS),
    Contestant("native bf16", "engine", "native", "bf16", *BF16_BOUNDS),
    Contestant("native bf16, 1 thread", "engine", "native", "bf16", *BF16_BOUNDS, threads=1),
    Contestant("native int8", "engine", "native", "int8", *INT8_BOUNDS),
    Contestant("native int8, all layers", "engine", "native", "int8", *ALL_INT8_BOUNDS, variant=ALL_INT8),
)
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


@dataclass(frozen=True)
class Task:
    """What every contestant is given: files, threads, and the setting that is timed.

    options: what must be said about the checkpoint beside its weights, as options of its family (export/families).
    plain: the plain export of the network. variants: other bundles of the same checkpoint, by name. network: the folder of
    the one network (networks.py) whose calls are timed in place of whole images; there is no bundle then.
    """

    bundle: Path
    checkpoint: Path | None
    options: dict[str, Any]
    steps: int
    threads: int
    plain: Path | None = None
    variants: dict[str, Path] = field(default_factory=dict)
    network: Path | None = None

    def bundle_of(self, contestant: Contestant) -> Path:
        """The bundle that a contestant samples from."""
        return self.bundle if contestant.variant is None else self.variants[contestant.variant]


@dataclass(frozen=True)
class Run:
    """One whole run: x float32 [N, C, H, W], and milliseconds in all, per network call, and by other stage."""

    x: F32
    total_ms: float
    calls_ms: list[float]
    stages_ms: dict[str, float] = field(default_factory=dict)


class Runner(Protocol):
    """What a contestant's process holds once it has loaded."""

    def eps(self, x: F32, values: Values, timestep: int) -> F32:
        """One network call; `values` by the pipeline's names, the whole batch at the same timestep."""

    def run(self, n: int, seed: int, steps: int) -> Run:
        """n images from the seeds seed .. seed + n - 1, from their drawn input to uint8 pixels."""


def skip_reason(
    contestant: Contestant, task: Task, processor: Processor, backends: dict[str, tuple[bool, str]]
) -> str | None:
    """Why a contestant cannot take part on this machine, or None."""
    if contestant.precision == "bf16" and contestant.backend != "native" and not processor.bf16:
        return "the processor has no bf16 (neither amx_bf16 nor avx512_bf16)"
    if contestant.threads is not None and contestant.threads == task.threads:
        return f"the others run on {task.threads} thread too"
    if contestant.kind == "diffusers":
        return _diffusers_reason(task)
    if task.network is not None:
        return _network_reason(contestant, task, backends)
    if contestant.kind in ("torch", "compile"):
        return "no checkpoint was given to load the network from (--checkpoint)" if task.checkpoint is None else None
    if contestant.kind == "plain" and task.plain is None:
        return "no checkpoint was given to make the plain export from (--checkpoint)"
    if contestant.variant is not None and contestant.variant not in task.variants:
        return f"no bundle with {contestant.variant} was given or built"
    installed, reason = backends[contestant.backend]
    if installed and contestant.backend == "native":
        return _native_reason(contestant, task)
    return None if installed else reason


def _network_reason(contestant: Contestant, task: Task, backends: dict[str, tuple[bool, str]]) -> str | None:
    """Of one network, whose int8 is that of all layers: which of them fit a budget is measured on a model's own chains."""
    from benchmarks.latency.networks import Network

    assert task.network is not None
    if contestant.kind not in ("engine", "torch"):
        return "one network is timed by itself: on the engine's backends, in eager torch and in diffusers"
    if contestant.precision == "int8":
        if contestant.variant is None:
            return "one network by itself has no chains to choose int8 layers on: all layers are another contestant"
        if not Network(task.network).has_int8:
            return "a decoder has no int8"
    if contestant.kind == "torch":
        return None
    installed, reason = backends[contestant.backend]
    return None if installed else reason


def _diffusers_reason(task: Task) -> str | None:
    from benchmarks.latency.peer import KNOWN

    if task.network is None or task.network.name not in KNOWN:
        return f"diffusers takes part with networks that it has: {', '.join(KNOWN)}"
    there = importlib.util.find_spec("diffusers") is not None
    return None if there else f"diffusers is not installed: {install_extra('benchmark')}"


def _native_reason(contestant: Contestant, task: Task) -> str | None:
    bundle = Bundle.open(task.bundle_of(contestant))
    if bundle.has_engine("native", contestant.precision, bundle.manifest.pipeline.step.graph):
        return None
    return f"the bundle has no native engine in {contestant.precision}"
