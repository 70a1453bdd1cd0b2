"""How each contestant makes its images, from the same z and x_T.

A contestant runs inside a process of its own (worker.py) and answers two questions: what e is for given inputs, and what
images a chain gives and how long it took. A new one is a class with these methods and lines in RUNNERS and field.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.latency import reference
from benchmarks.latency.calls import F32, Values, step_arrays
from benchmarks.latency.field import Contestant, Run, Runner, Task
from benchmarks.latency.networks import NetworkRunner
from benchmarks.latency.peer import DiffusersRunner, EagerRunner
from benchmarks.latency.plain import PlainRunner

STAGES = ("before", "rows", "noise", "update", "after", "post")  # of engine.result.Timings, beside the steps' network


class EngineRunner:
    """Our Sampler on one of its backends."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        from engine import Sampler

        self._sampler = Sampler(
            task.bundle_of(contestant), contestant.backend, contestant.precision, contestant.threads or task.threads
        )
        # The others draw from N(0, I) too; a model without an input that is drawn takes no prior.
        self._prior = "standard" if self._sampler.bundle.manifest.drawn is not None else None

    def eps(self, x: F32, values: Values, timestep: int) -> F32:
        """The bundle's graphs as the Sampler would call them; loaded beside the Sampler's own and closed again."""
        from engine import backends

        sampler, step = self._sampler, self._sampler.bundle.manifest.pipeline.step
        how: dict[str, Any] = {"backend": sampler.backend, "precision": sampler.precision, "threads": sampler.threads}
        arrays = step_arrays(sampler.bundle, x, values, timestep, **how)
        with backends.load(sampler.bundle, step.graph, **how) as network:
            (e,) = network(**arrays).values()
            return np.array(e, np.float32)

    def run(self, n: int, seed: int, steps: int) -> Run:
        """`Sampler.sample`; its timings say where the time went."""
        started = time.perf_counter()
        batch = self._sampler.sample(n, seed=seed, steps=steps, spacing="linspace", prior=self._prior)
        total = 1e3 * (time.perf_counter() - started)
        t = batch.timings
        stages = {stage: float(getattr(t, f"{stage}_ms")) for stage in STAGES}
        return Run(batch.x, total, [t.first_step_ms, *t.other_steps_ms], stages)


class TorchRunner:
    """The same network in PyTorch, eager or compiled, with the time embedding in every call as in the reference.

    The solver is a plain loop over the same coefficients; noise comes from the engine, so that images can be compared.
    """

    def __init__(self, contestant: Contestant, task: Task) -> None:
        import torch

        from engine.bundle.reader import Bundle

        torch.set_num_threads(task.threads)
        assert task.checkpoint is not None, "a contestant without a checkpoint is skipped"
        self._torch = torch
        self._manifest = Bundle.open(task.bundle).manifest
        self._chain = reference.Chain(self._manifest)
        self._unet, self._vae = reference.networks(task.checkpoint, task.options)
        self._bf16 = contestant.precision == "bf16"
        self._network = self._compiled() if contestant.kind == "compile" else self._unet

    def _compiled(self) -> Any:
        """The UNet through torch.compile with its weights frozen into the code: compiled at the first call of a shape."""
        from torch._inductor import config

        config.freezing = True
        return self._torch.compile(self._unet, dynamic=False)

    def _context(self) -> ExitStack:
        """No gradients; bf16 by autocast where asked for."""
        stack = ExitStack()
        stack.enter_context(self._torch.inference_mode())
        stack.enter_context(self._torch.autocast("cpu", dtype=self._torch.bfloat16, enabled=self._bf16))
        return stack

    def eps(self, x: F32, values: Values, timestep: int) -> F32:
        """`UNet.forward`, time embedding and all."""
        with self._context():
            tensors = {name: self._torch.from_numpy(array) for name, array in values.items()}
            return np.array(self._call(self._torch.from_numpy(x), tensors, timestep).float().numpy())

    def run(self, n: int, seed: int, steps: int) -> Run:
        """VAE decoder, then the chain of DDIM, then pixels."""
        from engine.solver import noise as noises

        started, torch, calls = time.perf_counter(), self._torch, []
        seeds, state = noises.resolve_seeds(seed, n), self._manifest.pipeline.state

        def network(x: Any, timestep: int) -> Any:
            asked = time.perf_counter()
            eps = self._call(x, values, timestep).float()
            calls.append(1e3 * (time.perf_counter() - asked))
            return eps

        with self._context():
            values = self._values(seeds)
            centre = values[state.centre] if state.centre is not None else 0.0
            x_T = torch.from_numpy(noises.initial(seeds, state.shape))
            x = self._chain.run(steps, x_T, centre, network, torch.clamp)
            pixels = ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            pixels.numpy()
        return Run(x.numpy(), 1e3 * (time.perf_counter() - started), calls)

    def _values(self, seeds: Any) -> dict[str, Any]:
        """What the network is conditioned on: the VAE's image of each seed's z, and z itself where the network takes it."""
        from engine.solver import noise as noises

        if self._vae is None:
            return {}
        z = self._torch.from_numpy(noises.drawn(seeds, (self._vae.spec.z_dim,)))
        recon = {reference.RECON: 2 * self._vae.decode(z).float() - 1}
        return recon | {reference.Z: z} if self._unet.spec.z_dim else recon

    def _call(self, x: Any, values: dict[str, Any], timestep: int) -> Any:
        times = self._torch.full((len(x),), timestep, dtype=self._torch.int64)
        return self._network(x, values.get(reference.RECON), times, values.get(reference.Z))


def engine_runner(contestant: Contestant, task: Task) -> Runner:
    """Our engine: whole images, or the one network of the task."""
    return (EngineRunner if task.network is None else NetworkRunner)(contestant, task)


def torch_runner(contestant: Contestant, task: Task) -> Runner:
    """The reference's modules: whole images, or the one network of the task."""
    return (TorchRunner if task.network is None else EagerRunner)(contestant, task)


RUNNERS: dict[str, Callable[[Contestant, Task], Runner]] = {
    "engine": engine_runner, "torch": torch_runner, "compile": TorchRunner, "plain": PlainRunner,
    "diffusers": DiffusersRunner,
}  # fmt: skip
