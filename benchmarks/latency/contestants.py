"""How does a contestant make its images? Each in its own way, from the same z and x_T.

A contestant runs inside a process of its own (worker.py) and answers three questions: what eps is for given inputs, what
images a chain gives, and how long the chain took. A new one is a class with these methods and lines in RUNNERS and field.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.latency.field import F32, Contestant, Run, Runner, Task
from benchmarks.latency.plain import PlainRunner, apply_row


class EngineRunner:
    """Our Sampler on one of its backends."""

    def __init__(self, contestant: Contestant, task: Task) -> None:
        from engine import Sampler

        self._sampler = Sampler(
            task.bundle_of(contestant), contestant.backend, contestant.precision, contestant.threads or task.threads
        )
        # The others draw z from N(0, I); a model without a VAE draws none.
        self._prior = "standard" if self._sampler.bundle.manifest.model.conditional else None

    def eps(self, x: F32, cond: F32 | None, z: F32 | None, timestep: int) -> F32:
        """The bundle's graphs as the Sampler would call them; loaded beside the Sampler's own and closed again."""
        from engine import backends

        sampler = self._sampler
        how: dict[str, Any] = {"backend": sampler.backend, "threads": sampler.threads}
        times = np.array([timestep], np.int64)
        with backends.load(sampler.bundle, "timestep_table", precision="f32", **how) as table:
            given = {"timesteps": times} if z is None else {"timesteps": times, "z": z}
            rows = np.array(table(**given)["rows"])
        with backends.load(sampler.bundle, "denoiser", precision=sampler.precision, **how) as denoiser:
            inputs = {"x": x, "row": rows if z is None else rows[0]}
            return np.array(denoiser(**(inputs if cond is None else {**inputs, "cond": cond}))["eps"], np.float32)

    def run(self, n: int, seed: int, steps: int) -> Run:
        """`Sampler.sample`; its timings say where the time went."""
        started = time.perf_counter()
        batch = self._sampler.sample(n, seed=seed, steps=steps, spacing="linspace", prior=self._prior)
        total = 1e3 * (time.perf_counter() - started)
        t = batch.timings
        stages = {"vae": t.vae_ms, "table": t.table_ms, "noise": t.noise_ms, "update": t.update_ms, "post": t.post_ms}
        return Run(batch.x, total, [t.first_step_ms, *t.other_steps_ms], stages)


class TorchRunner:
    """The same network in PyTorch, eager or compiled, with the time embedding in every call as in the reference.

    The solver is a plain loop over the same coefficients; noise comes from the engine, so that images can be compared.
    """

    def __init__(self, contestant: Contestant, task: Task) -> None:
        import torch

        from engine.solver.table import Schedule
        from export.build import Request, infer_architecture, load, read
        from export.read.evidence import Options

        torch.set_num_threads(task.threads)
        assert task.checkpoint is not None, "a contestant without a checkpoint is skipped"
        request = Request(task.checkpoint, options=Options(**task.options))
        source = read(request)
        self._torch = torch
        self._model = infer_architecture(source, request.options)
        self._unet, self._vae = load(source, self._model)
        self._schedule = Schedule(self._model.beta_1, self._model.beta_T, self._model.T)
        self._bf16 = contestant.precision == "bf16"
        self._network = self._compiled(contestant) if contestant.kind == "compile" else self._unet

    def _compiled(self, contestant: Contestant) -> Any:
        """The UNet through torch.compile with its weights frozen into the code: compiled at the first call of a shape."""
        from torch._inductor import config

        config.freezing = True
        return self._torch.compile(self._unet, dynamic=False)

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
        from engine.solver import noise as noises
        from engine.solver.table import build_step_table

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
                x = apply_row(row, x, eps, 0.0 if cond is None else cond, self._torch.clamp)
            pixels = ((x.clamp(-1, 1) + 1) * 127.5 + 0.5).to(self._torch.uint8).permute(0, 2, 3, 1).contiguous()
            pixels.numpy()
        return Run(x.numpy(), 1e3 * (time.perf_counter() - started), calls)

    def _call(self, x: Any, cond: Any, z: Any, timestep: int) -> Any:
        return self._network(x, cond, self._torch.full((len(x),), timestep, dtype=self._torch.int64), z)


RUNNERS: dict[str, Callable[[Contestant, Task], Runner]] = {
    "engine": EngineRunner, "torch": TorchRunner, "compile": TorchRunner, "plain": PlainRunner,
}  # fmt: skip
