"""Who competes in the latency benchmark? Each contestant makes the same images from the same z and x_T, in its own way.

A contestant runs inside a process of its own (worker.py) and answers three questions: what eps is for given inputs, what
images a chain gives, and how long the chain took. A new one is a class with these methods and a line in CONTESTANTS.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.processor import Processor

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contestant:
    """A name, how it computes, and the bounds its outputs must keep (compare.py says of what)."""

    name: str
    kind: str  # "engine": a Sampler on `backend`;  "torch": the same network as eager PyTorch runs it
    backend: str
    precision: str
    step_bound: float
    chain_bound: float


# Bounds of bf16: one step of the CIFAR-10 network measured 0.009 in eager PyTorch. Chains amplify (at t = 999 an error of
# eps is multiplied by 1 / sqrt(alpha_bar), 158, before x_0 is clipped): their bound only tells one image from another.
CONTESTANTS = (
    Contestant("torch eager f32", "torch", "torch", "f32", 1e-4, 2e-3),
    Contestant("torch eager bf16", "torch", "torch", "bf16", 0.04, 0.25),
    Contestant("onnxruntime f32", "engine", "onnxruntime", "f32", 1e-4, 2e-3),
    Contestant("openvino f32", "engine", "openvino", "f32", 1e-4, 2e-3),
    Contestant("openvino bf16", "engine", "openvino", "bf16", 0.03, 0.25),
)


@dataclass(frozen=True)
class Task:
    """What every contestant is given: files, threads, and the setting that is timed.

    options: what must be said about the checkpoint beside its weights, as keywords of export.evidence.Options.
    """

    bundle: Path
    checkpoint: Path | None
    options: dict[str, Any]
    steps: int
    threads: int


@dataclass(frozen=True)
class Run:
    """One whole run: x float32 [N, 3, H, W] in [-1, 1], and milliseconds in all, per network call, and by other stage."""

    x: F32
    total_ms: float
    calls_ms: list[float]
    stages_ms: dict[str, float] = field(default_factory=dict)


class Runner(Protocol):
    """What a contestant's process holds once it has loaded."""

    def eps(self, x: F32, cond: F32 | None, z: F32 | None, timestep: int) -> F32:
        """One network call; every input of the batch at the same timestep."""

    def run(self, n: int, seed: int, steps: int) -> Run:
        """n images from the seeds seed .. seed + n - 1, from z to uint8 pixels."""


def skip_reason(
    contestant: Contestant, task: Task, processor: Processor, backends: dict[str, tuple[bool, str]]
) -> str | None:
    """Why a contestant cannot take part on this machine, or None."""
    if contestant.precision == "bf16" and not processor.bf16:
        return "the processor has no bf16 (neither amx_bf16 nor avx512_bf16)"
    if contestant.kind == "torch":
        return "no checkpoint was given to load the network from (--checkpoint)" if task.checkpoint is None else None
    installed, reason = backends[contestant.backend]
    return None if installed else reason


class EngineRunner:
    """Our Sampler on one of its backends."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        from engine import Sampler

        self._sampler = Sampler(task.bundle, contestant.backend, contestant.precision, task.threads)

    def eps(self, x: F32, cond: F32 | None, z: F32 | None, timestep: int) -> F32:
        """The bundle's graphs as the Sampler would call them; loaded beside the Sampler's own and closed again."""
        from engine import backends

        sampler = self._sampler
        how: dict[str, Any] = {"backend": sampler.backend, "precision": sampler.precision, "threads": sampler.threads}
        times = np.array([timestep], np.int64)
        with backends.load(sampler.bundle, "timestep_table", **how) as table:
            given = {"timesteps": times} if z is None else {"timesteps": times, "z": z}
            rows = np.array(table(**given)["rows"])
        with backends.load(sampler.bundle, "denoiser", **how) as denoiser:
            inputs = {"x": x, "row": rows if z is None else rows[0]}
            return np.array(denoiser(**(inputs if cond is None else {**inputs, "cond": cond}))["eps"], np.float32)

    def run(self, n: int, seed: int, steps: int) -> Run:
        """`Sampler.sample`; its timings say where the time went."""
        started = time.perf_counter()
        batch = self._sampler.sample(n, seed=seed, steps=steps, spacing="linspace")
        total = 1e3 * (time.perf_counter() - started)
        t = batch.timings
        stages = {"vae": t.vae_ms, "table": t.table_ms, "noise": t.noise_ms, "update": t.update_ms, "post": t.post_ms}
        return Run(batch.x, total, [t.first_step_ms, *t.other_steps_ms], stages)


class TorchRunner:
    """The same network in eager PyTorch, with the time embedding in every call, as the reference implementation runs it.

    The solver is a plain loop over the same coefficients; noise comes from the engine, so that images can be compared.
    """

    def __init__(self, contestant: Contestant, task: Task) -> None:
        import torch

        from engine.steps import Schedule
        from export.build import Request, infer_architecture, load, read
        from export.evidence import Options

        torch.set_num_threads(task.threads)
        assert task.checkpoint is not None, "a contestant without a checkpoint is skipped"
        request = Request(task.checkpoint, options=Options(**task.options))
        source = read(request)
        self._torch = torch
        self._model = infer_architecture(source, request.options)
        self._unet, self._vae = load(source, self._model)
        self._schedule = Schedule(self._model.beta_1, self._model.beta_T, self._model.T)
        self._bf16 = contestant.precision == "bf16"

    def _context(self) -> Any:
        """No gradients; bf16 by autocast where asked for."""
        from contextlib import ExitStack

        stack = ExitStack()
        stack.enter_context(self._torch.inference_mode())
        stack.enter_context(self._torch.autocast("cpu", dtype=self._torch.bfloat16, enabled=self._bf16))
        return stack

    def eps(self, x: F32, cond: F32 | None, z: F32 | None, timestep: int) -> F32:
        """`UNet.forward`, time embedding and all."""
        with self._context():
            tensors = [None if array is None else self._torch.from_numpy(array) for array in (x, cond, z)]
            answer = self._call(tensors[0], tensors[1], tensors[2], timestep)
            return np.array(answer.float().numpy())

    def run(self, n: int, seed: int, steps: int) -> Run:
        """VAE decoder, then the chain of DDIM, then pixels."""
        from engine import noise as noises
        from engine.steps import build_step_table

        started = time.perf_counter()
        formulation = self._model.formulation
        table = build_step_table(self._schedule, formulation=formulation, steps=steps, spacing="linspace")
        seeds = noises.resolve_seeds(seed, n)
        size, calls = self._model.unet.image_size, []
        with self._context():
            cond = z = None
            if self._vae is not None:
                z = self._torch.from_numpy(noises.latent(seeds, (self._vae.spec.z_dim,)))
                cond = 2 * self._vae.decode(z).float() - 1
            x = table.start.k_noise * self._torch.from_numpy(noises.initial(seeds, (3, size, size)))
            x = x if cond is None else x + table.start.k_cond * cond
            for t, row in zip(table.timesteps.tolist(), table.rows.tolist(), strict=True):
                asked = time.perf_counter()
                eps = self._call(x, cond, z if self._model.unet.z_dim else None, t).float()
                calls.append(1e3 * (time.perf_counter() - asked))
                x = apply_row(row, x, eps, 0.0 if cond is None else cond)
            pixels = ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).to(self._torch.uint8).permute(0, 2, 3, 1).contiguous()
            pixels.numpy()
        return Run(x.numpy(), 1e3 * (time.perf_counter() - started), calls)

    def _call(self, x: Any, cond: Any, z: Any, timestep: int) -> Any:
        return self._unet(x, cond, self._torch.full((len(x),), timestep, dtype=self._torch.int64), z)


def apply_row(row: list[float], x: Any, eps: Any, cond: Any) -> Any:
    """One row of a deterministic step table (kernels.ROW_FIELDS): x_0, clipped, then the next x."""
    p_x, p_eps, p_cond, k_x0, _, k_x, k_eps, k_cond, _, clip = row
    x0 = (p_x * x + p_eps * eps + p_cond * cond).clamp(-clip, clip)
    return k_x0 * x0 + k_x * x + k_eps * eps + k_cond * cond


RUNNERS: dict[str, Callable[[Contestant, Task], Runner]] = {"engine": EngineRunner, "torch": TorchRunner}
